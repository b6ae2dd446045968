"""Where a compressed model lives: device maps, weights on disk, the meta device, copies; and how much memory it takes.

Transformers and Accelerate count, place and offload factors as they do dense weights. What they refuse for a dense
model (a tied head in another place than its table) they refuse here.
"""

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import disk_offload, dispatch_model, init_empty_weights, load_checkpoint_and_dispatch
from accelerate.utils import load_checkpoint_in_model
from conftest import TINY_MODELS, VOCAB_SIZE, Tiny, equal_state_dicts, run_python
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, GPT2Model

from hf_projclust import compress, decompress
from hf_projclust.vocabulary_projclust import factored_tables

DENSE_ROWS, DENSE_DIM = 3001, 64
SAVING_OFFLOADED = "ignore:Attempting to save a model with offloaded modules:UserWarning"
BUFFER_IN_A_MAP = "ignore:The following device_map keys do not match any submodules:UserWarning"  # BART has one


def saved(name: str, folder: Path) -> tuple[Tiny, Any, torch.Tensor]:
    """A tiny model of two layers, compressed and saved; and its output."""
    tiny = copy.deepcopy(TINY_MODELS[name])
    for layers in ("num_hidden_layers", "encoder_layers", "decoder_layers", "num_layers", "num_decoder_layers"):
        if hasattr(tiny.config, layers):
            setattr(tiny.config, layers, 2)
    if getattr(tiny.config, "layer_types", None):
        tiny.config.layer_types = tiny.config.layer_types * 2
    model = tiny.compressed()
    model.save_pretrained(folder)
    return tiny, model, output(model, tiny)


@torch.no_grad()
def output(model: Any, tiny: Tiny) -> torch.Tensor:
    return model(**tiny.inputs())[0]


def placed(model: Any, on_disk: set[str]) -> dict[str, str]:
    """A device map that has some modules on disk and everything else in memory."""
    places: dict[str, str] = {}

    def visit(module: torch.nn.Module, name: str) -> None:
        if name in on_disk or not any(part.startswith(f"{name}.".lstrip(".")) for part in on_disk):
            places[name] = "disk" if name in on_disk else "cpu"
            return
        for child, submodule in module.named_children():
            visit(submodule, f"{name}.{child}".lstrip("."))
        for part in (*module._parameters, *module._buffers):
            places[f"{name}.{part}".lstrip(".")] = "cpu"

    visit(model, "")
    return places


@pytest.mark.parametrize("device_map", ["auto", "cpu", {"": "cpu"}])
@pytest.mark.parametrize("name", ["gpt2", "llama", "t5"])
def test_a_device_map_in_memory_reloads_bit_equal_with_tied_factors(name: str, device_map: Any, tmp_path: Path) -> None:
    tiny, model, expected = saved(name, tmp_path)
    reloaded = type(model).from_pretrained(tmp_path, device_map=device_map)
    assert equal_state_dicts(model, reloaded)
    assert torch.equal(output(reloaded, tiny), expected)
    assert len({id(table.coefficients) for table in factored_tables(reloaded).values()}) == 1


def check_offloaded(model: Any, tiny: Tiny, original: Any, expected: torch.Tensor, folder: Path) -> None:
    """Equal outputs, twice; a save that is whole; and no factor left in memory."""
    for table in factored_tables(model).values():
        assert table.coefficients.is_meta
        assert table.bases.is_meta
    for _ in range(2):
        assert torch.equal(output(model, tiny), expected)
    assert all(table.coefficients.is_meta for table in factored_tables(model).values())
    model.save_pretrained(folder)
    again = type(original).from_pretrained(folder)
    assert equal_state_dicts(again, original)
    assert equal_state_dicts(decompress(str(folder)), decompress(original))


@pytest.mark.filterwarnings(SAVING_OFFLOADED)
@pytest.mark.parametrize("name", ["gpt2", "bert", "t5", "bart", "gemma3", "llama"])
def test_a_model_that_is_wholly_on_disk_computes_and_saves_the_same(name: str, tmp_path: Path) -> None:
    tiny, model, expected = saved(name, tmp_path / "model")
    reloaded = type(model).from_pretrained(
        tmp_path / "model", device_map={"": "disk"}, offload_folder=tmp_path / "offload"
    )
    check_offloaded(reloaded, tiny, model, expected, tmp_path / "again")


@pytest.mark.filterwarnings(SAVING_OFFLOADED)
@pytest.mark.filterwarnings(BUFFER_IN_A_MAP)
@pytest.mark.parametrize(
    "name", ["gpt2", "t5", "bart", "gemma3", "llama"]
)  # of bert Transformers loses the head's bias
def test_factors_on_disk_under_a_body_in_memory_compute_and_save_the_same(name: str, tmp_path: Path) -> None:
    tiny, model, expected = saved(name, tmp_path / "model")
    device_map = placed(model, set(tiny.tables))
    reloaded = type(model).from_pretrained(
        tmp_path / "model", device_map=device_map, offload_folder=tmp_path / "offload"
    )
    assert not all(parameter.is_meta for parameter in reloaded.parameters())
    check_offloaded(reloaded, tiny, model, expected, tmp_path / "again")


def test_an_offloaded_model_is_decompressed_from_its_folder_only(tmp_path: Path) -> None:
    _, model, _ = saved("gpt2", tmp_path)
    reloaded = type(model).from_pretrained(tmp_path, device_map={"": "disk"}, offload_folder=tmp_path / "offload")
    with pytest.raises(ValueError, match="not in memory .*expected all of them on one device.*without a device_map"):
        decompress(reloaded)


def test_offloaded_buffers_are_refused_where_a_head_shares_the_row_order(tmp_path: Path) -> None:
    everything = {"device_map": {"": "disk"}, "offload_buffers": True, "offload_folder": tmp_path / "offload"}
    tiny, model, expected = saved("llama", tmp_path / "llama")
    untied = type(model).from_pretrained(tmp_path / "llama", **everything)
    assert untied.get_input_embeddings().rows.is_meta
    assert torch.equal(output(untied, tiny), expected)
    saved("gpt2", tmp_path / "gpt2")
    with pytest.raises(
        ValueError, match="offload_buffers=True, and lm_head.rows copies .* in memory.*Leave offload_buffers"
    ):
        AutoModelForCausalLM.from_pretrained(tmp_path / "gpt2", **everything)


@pytest.mark.parametrize("offload_buffers", [False, True])
@pytest.mark.parametrize("name", ["gpt2", "t5", "llama"])
def test_a_model_in_memory_is_offloaded_by_accelerate(name: str, offload_buffers: bool, tmp_path: Path) -> None:
    tiny, model, expected = saved(name, tmp_path / "model")
    disk_offload(model, tmp_path / "offload", offload_buffers=offload_buffers)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert torch.equal(output(model, tiny), expected)


@pytest.mark.filterwarnings(BUFFER_IN_A_MAP)
@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma3", "t5", "bart"])
def test_a_small_max_memory_splits_the_model_with_factors_counted_at_their_size(name: str, tmp_path: Path) -> None:
    tiny, model, expected = saved(name, tmp_path / "model")
    total = sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers()))
    splits = []
    for share in (0.3, 0.7, 3.0):
        reloaded = type(model).from_pretrained(
            tmp_path / "model",
            device_map="auto",
            max_memory={"cpu": int(share * total)},
            offload_folder=tmp_path / "offload",
        )
        assert torch.equal(output(reloaded, tiny), expected)
        in_memory = {parameter for parameter in reloaded.parameters() if not parameter.is_meta}
        splits.append(sum(parameter.numel() * parameter.element_size() for parameter in in_memory))
        assert splits[-1] <= share * total
    nothing_or_little, something, everything = splits
    assert nothing_or_little < something < everything == sum(p.numel() * 4 for p in model.parameters())


def test_a_table_stays_in_memory_where_the_dense_one_would_not_fit(tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=997, n_embd=32, n_layer=2, n_head=2, n_positions=8, bos_token_id=1, eos_token_id=2)
    dense = GPT2LMHeadModel(config)
    compress(dense, preset="svd", rank=4).save_pretrained(tmp_path / "compressed")
    dense.save_pretrained(tmp_path / "dense")
    in_memory = {}
    for kind in ("dense", "compressed"):
        model = AutoModelForCausalLM.from_pretrained(
            tmp_path / kind,
            device_map="auto",
            max_memory={"cpu": 997 * 32 * 4},
            offload_folder=tmp_path / "offload",
        )
        in_memory[kind] = not next(model.get_input_embeddings().parameters()).is_meta
    assert in_memory == {"dense": False, "compressed": True}


# Memory.


class LargestTensor(TorchDispatchMode):
    """Records the most numbers that any tensor in memory had, among those that an operation gave."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: D105
        result = func(*args, **(kwargs or {}))
        sizes = [
            max(leaf.numel(), leaf.untyped_storage().nbytes() // leaf.element_size())
            for leaf in tree_leaves(result)
            if isinstance(leaf, torch.Tensor) and leaf.device.type != "meta"
        ]
        self.numbers = max([self.numbers, *sizes])
        return result


@pytest.mark.parametrize("tied", [True, False])
def test_no_step_from_loading_to_training_to_saving_makes_a_dense_table(
    tied: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")  # a dispatch mode sees its own thread only
    config = GPT2Config(
        vocab_size=DENSE_ROWS,
        n_embd=DENSE_DIM,
        n_layer=1,
        n_head=2,
        n_positions=16,
        bos_token_id=1,
        eos_token_id=2,
    )
    model_class = GPT2LMHeadModel if tied else GPT2Model  # an untied head would be dense
    compressed = compress(model_class(config), preset="messi", num_clusters=3, rank=6)
    compressed.save_pretrained(tmp_path / "model")
    ids = torch.arange(16).view(2, 8) * 190
    with LargestTensor() as largest:
        model = type(compressed).from_pretrained(tmp_path / "model").train()
        optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
        output = (
            model(input_ids=ids, labels=ids).loss if tied else model(input_ids=ids).last_hidden_state.square().sum()
        )
        output.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if tied:
            model.eval().generate(ids, max_new_tokens=2, do_sample=False, pad_token_id=0)
        model.half().save_pretrained(tmp_path / "again")
    dense = DENSE_ROWS * DENSE_DIM
    assert sum(part.numel() for part in model.get_input_embeddings().parameters()) <= largest.numbers < dense / 2
    with LargestTensor() as largest:  # it would have been seen
        model.get_input_embeddings().weight + 0
    assert largest.numbers == dense


LOAD = """
import sys
import hf_projclust
import torch
from transformers import AutoModelForCausalLM

def peak():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

AutoModelForCausalLM.from_pretrained(sys.argv[1])  # what is imported on first use
before = peak()
model = AutoModelForCausalLM.from_pretrained(sys.argv[2])
model(input_ids=torch.tensor([[1, 79_999]]))
model.save_pretrained(sys.argv[3])
after = peak()
table = model.get_input_embeddings().weight + 0
print(after - before, peak() - after)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is read from /proc")
def test_loading_running_and_saving_takes_a_fraction_of_the_memory_of_a_dense_table(tmp_path: Path) -> None:
    saved("gpt2", tmp_path / "warm")
    config = copy.deepcopy(TINY_MODELS["gpt2"].config)
    config.vocab_size, config.n_embd = 80_000, 128
    dense_bytes = 80_000 * 128 * 4
    compress(GPT2LMHeadModel(config), preset="svd", rank=8, max_rounds=1).save_pretrained(tmp_path / "large")
    in_use, control = map(int, run_python(LOAD, *(str(tmp_path / name) for name in ("warm", "large", "again"))).split())
    assert control > 0.9 * dense_bytes
    assert in_use < 0.4 * dense_bytes


# Copies and the meta device.


def through_torch_save(model: Any) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("name", ["gpt2", "t5", "bart", "llama"])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), through_torch_save])
def test_copies_are_whole_tied_and_apart(name: str, copied: Callable[[Any], Any], tmp_path: Path) -> None:
    tiny, model, expected = saved(name, tmp_path / "model")
    twin = copied(model)
    assert type(twin) is type(model)
    assert equal_state_dicts(twin, model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(output(twin, tiny), expected)
    tables = factored_tables(twin)
    assert set(tables) == set(tiny.tables)
    assert len({id(table.coefficients) for table in tables.values()}) == 1
    twin.save_pretrained(tmp_path / "twin")
    assert equal_state_dicts(type(model).from_pretrained(tmp_path / "twin"), twin)


def test_a_pickled_model_opens_in_a_fresh_process_that_imports_nothing(tmp_path: Path) -> None:
    _, model, _ = saved("gpt2", tmp_path / "model")
    torch.save(model, tmp_path / "model.pt")
    code = "import sys, torch; torch.load(sys.argv[1], weights_only=False).save_pretrained(sys.argv[2])"
    run_python(code, str(tmp_path / "model.pt"), str(tmp_path / "again"))
    assert equal_state_dicts(AutoModelForCausalLM.from_pretrained(tmp_path / "again"), model)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_model_made_empty_holds_no_numbers_and_is_filled_by_a_state_dict(name: str, tmp_path: Path) -> None:
    tiny, model, expected = saved(name, tmp_path)
    with init_empty_weights():
        empty = type(model)(copy.deepcopy(model.config)).eval()
    assert all(parameter.is_meta for parameter in empty.parameters())
    empty.load_state_dict(model.state_dict(), assign=True)
    empty.tie_weights()
    assert torch.equal(output(empty, tiny), expected)
    assert len({id(table.coefficients) for table in factored_tables(empty).values()}) == 1


@pytest.mark.parametrize("name", ["gpt2", "bert", "t5", "llama"])
def test_accelerate_fills_an_empty_model_from_its_file_where_it_is_tied_before_it_is_dispatched(
    name: str, tmp_path: Path
) -> None:
    tiny, model, expected = saved(name, tmp_path)
    with init_empty_weights():
        empty = type(model)(copy.deepcopy(model.config)).eval()
    empty.tie_weights()
    load_checkpoint_in_model(empty, str(tmp_path / "model.safetensors"), device_map={"": "cpu"})
    empty.tie_weights()
    filled = dispatch_model(empty, {"": "cpu"})
    assert torch.equal(output(filled, tiny), expected)


def test_accelerate_in_one_step_fails_aloud_for_a_tied_model(tmp_path: Path) -> None:
    _, model, _ = saved("gpt2", tmp_path)
    with init_empty_weights():
        empty = type(model)(copy.deepcopy(model.config))
    empty.tie_weights()
    with pytest.raises(NotImplementedError, match="meta tensor"):  # the row order of the head, which is in no file
        load_checkpoint_and_dispatch(empty, str(tmp_path / "model.safetensors"), device_map="auto")


@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_the_meta_device_gives_shapes_without_numbers(name: str, tmp_path: Path) -> None:
    tiny, model, expected = saved(name, tmp_path)
    model.to("meta")
    assert all(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    inputs = {key: value.to("meta") for key, value in tiny.inputs().items()}
    if name == "gpt2":
        del inputs["attention_mask"]  # which Transformers reads
        assert model(**inputs).logits.shape == expected.shape
    assert model.get_input_embeddings().weight.shape == (VOCAB_SIZE, tiny.config.hidden_size)
