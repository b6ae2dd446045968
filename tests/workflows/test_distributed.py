"""Training in two processes on a CPU (gloo): DDP by torchrun and by accelerate, FSDP2 by both libraries' plans."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_MODELS, VOCAB_SIZE, equal_state_dicts
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

NAMES = ("llama", "gemma3")  # a head of its own, which is dense; a tied one, which shares the factors
LEARNING_RATE, STEPS = 0.1, 3
ARGUMENTS: dict[str, Any] = {
    "max_steps": STEPS,
    "optim": "sgd",
    "learning_rate": LEARNING_RATE,
    "lr_scheduler_type": "constant",
    "max_grad_norm": 0.0,
    "train_sampling_strategy": "sequential",
    "save_strategy": "no",
    "report_to": [],
    "use_cpu": True,
    "disable_tqdm": True,
}

DDP_WORKER = """
import sys
from pathlib import Path
import torch
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments
import hf_projclust

folder, output = Path(sys.argv[1]), Path(sys.argv[2])
for name in ("llama", "gemma3"):
    model = AutoModelForCausalLM.from_pretrained(folder / name)
    options = {"per_device_train_batch_size": 2, "ddp_find_unused_parameters": False}
    arguments = TrainingArguments(str(output), **options, **torch.load(folder / "arguments.pt"))
    trainer = Trainer(model=model, args=arguments, train_dataset=torch.load(folder / f"{name}.pt"))
    trainer.train()
    assert type(trainer.model_wrapped).__name__ == "DistributedDataParallel"
    torch.save(model.state_dict(), output / f"{name}-{arguments.process_index}-of-{arguments.world_size}.pt")
    trainer.save_model(output / name)
"""

FSDP_WORKER = """
import sys
from pathlib import Path
import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments
from transformers.distributed import DistributedConfig
import hf_projclust

folder, output = Path(sys.argv[1]), Path(sys.argv[2])
arguments = torch.load(folder / "arguments.pt")
for name in ("llama", "gemma3"):
    sharding = DistributedConfig(fsdp_size=2)
    model = AutoModelForCausalLM.from_pretrained(folder / name, distributed_config=sharding)
    assert isinstance(model, FSDPModule)
    assert isinstance(model.get_input_embeddings().coefficients, DTensor)
    options = TrainingArguments(str(output), per_device_train_batch_size=2, **arguments)
    trainer = Trainer(model=model, args=options, train_dataset=torch.load(folder / f"{name}.pt"))
    trainer.train()
    trainer.save_model(output / name)

# accelerate shards for the Trainer on accelerators only: on a CPU its plan is called here.
accelerator = Accelerator(cpu=True)
for name in ("llama", "gemma3"):
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", cpu_ram_efficient_loading=False
    )
    model = fsdp2_prepare_model(accelerator, AutoModelForCausalLM.from_pretrained(folder / name)).train()
    embedding = model.get_input_embeddings()
    assert isinstance(embedding.coefficients, DTensor)
    assert name == "llama" or model.lm_head.coefficients is embedding.coefficients  # one group has both
    ids = torch.tensor([row["input_ids"] for row in torch.load(folder / f"{name}.pt")])
    optimizer = torch.optim.SGD(model.parameters(), lr=arguments["learning_rate"])
    for step in range(arguments["max_steps"]):
        batch = ids[4 * step + 2 * accelerator.process_index :][:2]
        optimizer.zero_grad()
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
    whole = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if accelerator.is_main_process:
        torch.save(whole, output / f"{name}-accelerate.pt")
accelerator.end_training()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, what they train on, and where one process with batches of four rows ends."""
    folder = tmp_path_factory.mktemp("models")
    torch.save(ARGUMENTS, folder / "arguments.pt")
    for name in NAMES:
        model = TINY_MODELS[name].compressed()
        model.save_pretrained(folder / name)
        torch.save(rows(model), folder / f"{name}.pt")
        arguments = TrainingArguments(str(folder / "run"), per_device_train_batch_size=4, **ARGUMENTS)
        trainer = Trainer(model=model, args=arguments, train_dataset=rows(model))
        trainer.train()
        trainer.save_model(folder / f"{name}-one-process")
    return folder


def rows(model: Any) -> list[dict[str, list[int]]]:
    """Pairs of rows: the first process gets any tokens, the second never one of the last two clusters."""
    embedding = model.get_input_embeddings()
    first_cluster = (embedding.rows < embedding.layout.cluster_sizes[0]).nonzero().flatten()
    generator = torch.Generator().manual_seed(0)
    examples = []
    for number in range(4 * STEPS):
        tokens = torch.arange(VOCAB_SIZE) if number % 4 < 2 else first_cluster
        ids = tokens[torch.randint(len(tokens), (6,), generator=generator)].tolist()
        examples.append({"input_ids": ids, "labels": ids})
    return examples


def launch(launcher: list[str], worker: str, folder: Path, output: Path) -> None:
    script = output / "worker.py"
    script.write_text(worker)
    command = [sys.executable, "-m", *launcher, str(script), str(folder), str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]


def end(path: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(path)


def assert_close(model: Any, expected: Any, start: Any) -> None:
    """Equal up to rounding, which is far less than what training changed."""
    found, wanted = model.state_dict(), expected.state_dict()
    assert found.keys() == wanted.keys()
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-4)
    old, new = start.get_input_embeddings(), model.get_input_embeddings()
    assert (new.coefficients - old.coefficients).abs().max() > 1e-4
    assert (new.bases - old.bases).abs().max() > 1e-4


TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
# With `--cpu`, accelerate starts several processes by MPI only; the workers ask for the CPU themselves.
ACCELERATE = [
    *("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"),
    *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"),
]


@pytest.mark.parametrize("launcher", [TORCHRUN, ACCELERATE], ids=["torchrun", "accelerate launch"])
def test_ddp_without_unused_parameters_equals_one_process_with_the_doubled_batch(
    launcher: list[str], folder: Path, tmp_path: Path
) -> None:
    launch(launcher, DDP_WORKER, folder, tmp_path)
    for name in NAMES:
        first, second = (torch.load(tmp_path / f"{name}-{rank}-of-2.pt") for rank in (0, 1))
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first)
        assert_close(end(tmp_path / name), end(folder / f"{name}-one-process"), end(folder / name))


def test_fsdp2_equals_one_process_and_its_whole_state_reloads(folder: Path, tmp_path: Path) -> None:
    launch(TORCHRUN, FSDP_WORKER, folder, tmp_path)
    for name in NAMES:
        start, expected = end(folder / name), end(folder / f"{name}-one-process")
        by_transformers = end(tmp_path / name)
        if name == "llama":
            assert_close(by_transformers, expected, start)
        else:  # the plan of transformers 5.23 leaves a tied head, dense or factored, a step behind its table
            assert by_transformers.lm_head.coefficients is by_transformers.model.embed_tokens.coefficients
            assert not equal_state_dicts(by_transformers, start)
            with pytest.raises(AssertionError, match="not close"):  # once it does not, README has a limit too many
                assert_close(by_transformers, expected, start)
        by_accelerate = end(folder / name)
        by_accelerate.load_state_dict(torch.load(tmp_path / f"{name}-accelerate.pt"))
        assert_close(by_accelerate, expected, start)
