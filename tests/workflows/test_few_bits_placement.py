"""Where a model in few bits lives: device maps, weights on disk, the meta device; and that no step makes its table."""

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import disk_offload, dispatch_model, init_empty_weights, load_checkpoint_and_dispatch
from accelerate.utils import load_checkpoint_in_model
from conftest import equal_state_dicts, save
from few_bits import DIM, NUM_TOKENS, inputs, logits, packed_model, packed_tables
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from hf_projclust import decompress
from hf_projclust.configuration_projclust import CODE_FILES
from hf_projclust.vocabulary_projclust import factored_tables

MODELS = {
    "gpt2": AutoModelForCausalLM,
    "llama": AutoModelForCausalLM,
    "t5": AutoModelForSeq2SeqLM,
    "gemma3": AutoModelForCausalLM,
}
every_model = pytest.mark.parametrize("name", MODELS)
saves_offloaded = pytest.mark.filterwarnings(
    "ignore:Attempting to save a model with offloaded modules:UserWarning",
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Path]]:
    models = {name: packed_model(name, **({"head": True} if name == "llama" else {})) for name in MODELS}
    return {name: (model, save(model, tmp_path_factory.mktemp(name) / "out")) for name, model in models.items()}


@pytest.mark.parametrize("device_map", ["auto", "cpu", {"": "cpu"}])
@every_model
def test_a_device_map_in_memory_reloads_bit_equal(name: str, device_map: Any, made: Any) -> None:
    model, folder = made[name]
    reloaded = MODELS[name].from_pretrained(folder, device_map=device_map)
    assert equal_state_dicts(model, reloaded)
    assert torch.equal(logits(reloaded, name), logits(model, name))


@saves_offloaded
@every_model
def test_a_model_that_is_wholly_on_disk_computes_and_saves_the_same(name: str, made: Any, tmp_path: Path) -> None:
    model, folder = made[name]
    on_disk = {"device_map": {"": "disk"}, "offload_folder": tmp_path / "offload"}
    reloaded = MODELS[name].from_pretrained(folder, **on_disk)
    for table in factored_tables(reloaded).values():
        assert table.coefficients.is_meta
        assert table.bases.is_meta
    for _ in range(2):
        assert torch.equal(logits(reloaded, name), logits(model, name))
    reloaded.save_pretrained(tmp_path / "again")
    assert equal_state_dicts(MODELS[name].from_pretrained(tmp_path / "again"), model)


@pytest.mark.parametrize("offload_buffers", [False, True])
@every_model
def test_a_model_in_memory_is_offloaded_by_accelerate(
    name: str, offload_buffers: bool, made: Any, tmp_path: Path
) -> None:
    model, folder = made[name]
    moved = MODELS[name].from_pretrained(folder)
    disk_offload(moved, tmp_path / "offload", offload_buffers=offload_buffers)
    assert all(parameter.is_meta for parameter in moved.parameters())
    assert torch.equal(logits(moved, name), logits(model, name))


def test_float_factors_of_an_offloaded_table_are_refused(made: Any, tmp_path: Path) -> None:
    model, folder = made["gpt2"]
    on_disk = {"device_map": {"": "disk"}, "offload_folder": tmp_path / "offload"}
    offloaded = MODELS["gpt2"].from_pretrained(folder, **on_disk)
    with pytest.raises(ValueError, match=r"not in memory.*expected .*without a device_map"):
        offloaded.dequantize_factors()
    with pytest.raises(ValueError, match=r"not in memory.*expected .*without a device_map"):
        decompress(offloaded)
    assert torch.equal(logits(offloaded, "gpt2"), logits(model, "gpt2"))


@every_model
def test_accelerate_fills_an_empty_model_that_is_tied_before_and_after_and_fails_aloud_otherwise(
    name: str, made: Any
) -> None:
    """Its loaders do not tie weights, which is when rows are ordered."""
    model, folder = made[name]
    with init_empty_weights():
        empty = type(model)(copy.deepcopy(model.config)).eval()
    with pytest.raises(NotImplementedError, match="meta tensor"):
        load_checkpoint_and_dispatch(copy.deepcopy(empty), str(folder / "model.safetensors"), device_map={"": "cpu"})
    empty.tie_weights()
    load_checkpoint_in_model(empty, str(folder / "model.safetensors"), device_map={"": "cpu"})
    empty.tie_weights()
    assert torch.equal(logits(dispatch_model(empty, {"": "cpu"}), name), logits(model, name))


@every_model
def test_the_meta_device_gives_shapes_and_is_filled_by_a_state_dict(name: str, made: Any) -> None:
    model, _ = made[name]
    with init_empty_weights():
        empty = type(model)(copy.deepcopy(model.config)).eval()
    empty.load_state_dict(model.state_dict(), assign=True)
    empty.tie_weights()
    assert torch.equal(logits(empty, name), logits(model, name))
    assert len({id(table.coefficients) for table in factored_tables(empty).values()}) == len(packed_tables(model))
    moved = copy.deepcopy(model).to("meta")
    assert all(tensor.is_meta for tensor in (*moved.parameters(), *moved.buffers()))
    embedding = moved.get_input_embeddings()
    assert embedding(torch.zeros(2, 3, dtype=torch.long, device="meta")).shape == (2, 3, DIM)
    assert embedding.weight.shape == (NUM_TOKENS, DIM)
    assert embedding.damage() is None


# Memory.


class LargestTensor(TorchDispatchMode):
    """Records the most numbers that any floating tensor in memory had, and the most bytes that any had."""

    numbers = num_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: D105
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.device.type != "meta":
                num_bytes = max(leaf.nbytes, leaf.untyped_storage().nbytes())
                self.num_bytes = max(self.num_bytes, num_bytes)
                if leaf.is_floating_point():
                    self.numbers = max(self.numbers, num_bytes // leaf.element_size())
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@every_model
def test_no_step_from_loading_to_saving_makes_a_dense_table(
    name: str, dtype: torch.dtype, made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")  # a dispatch mode sees its own thread only
    _, folder = made[name]
    few = {key: ids[:1, :6] for key, ids in inputs(name).items()}  # so that logits are no table
    with LargestTensor() as largest:
        model = MODELS[name].from_pretrained(folder, dtype=dtype)
        with torch.no_grad():
            model(**few)
            model.get_input_embeddings()(torch.arange(8 * 12).view(8, 12) * 20)
            model.generate(few["input_ids"], max_new_tokens=2, do_sample=False, pad_token_id=0)
        model.train()(**few, labels=few["input_ids"]).loss.backward()
        model.save_pretrained(tmp_path / "again")
        assert model.get_input_embeddings().weight.shape == (NUM_TOKENS, DIM)
    dense = NUM_TOKENS * DIM
    assert 0 < largest.numbers < dense
    assert largest.num_bytes < dense * dtype.itemsize
    with LargestTensor() as largest:  # it would have been seen
        model.get_input_embeddings().weight + 0
    assert largest.numbers >= dense


# Without this package.

BARE = """
import os, pickle, sys
sys.modules["hf_projclust"] = None
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM
for folder in sys.argv[1:]:
    auto = AutoModelForSeq2SeqLM if os.path.basename(folder) == "t5" else AutoModelForCausalLM
    inputs = load_file(os.path.join(folder, "expected.st"))
    expected = inputs.pop("expected")
    def check(model):
        with torch.no_grad():
            assert torch.equal(model(**inputs).logits, expected)
    model = auto.from_pretrained(folder, trust_remote_code=True)
    assert type(model).__module__.startswith("transformers_modules")
    check(model)
    check(pickle.loads(pickle.dumps(model)))
    model.save_pretrained(os.path.join(folder, "again"))
    check(auto.from_pretrained(os.path.join(folder, "again"), trust_remote_code=True))
    model.dequantize_factors().save_pretrained(os.path.join(folder, "float"))
"""


def test_a_folder_with_its_code_runs_without_this_package(made: Any, tmp_path: Path) -> None:
    folders = []
    for name, (model, _) in made.items():
        folders.append(tmp_path / name)
        model.save_pretrained(folders[-1], standalone=True)
        assert {path.name for path in folders[-1].glob("*.py")} == set(CODE_FILES)
        save_file({**inputs(name), "expected": logits(model, name).contiguous()}, folders[-1] / "expected.st")
    done = subprocess.run(
        [sys.executable, "-c", BARE, *map(str, folders)],
        env=os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules")},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for folder in folders:
        first, again = (load_file(path / "model.safetensors") for path in (folder, folder / "again"))
        assert first.keys() == again.keys()
        assert all(torch.equal(first[key], again[key]) for key in first)
        reloaded = MODELS[folder.name].from_pretrained(folder / "float")
        expected = load_file(folder / "expected.st")["expected"]
        torch.testing.assert_close(logits(reloaded, folder.name), expected, atol=1e-5, rtol=1e-5)
