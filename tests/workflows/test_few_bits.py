"""Models whose tables are in few bits, from compress() to a reload: nothing changes, and sizes are what they are said.

Random bytes would do for the reading of them (see test_packed_projclust); here the tables are compressed.
"""

import copy
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import equal_state_dicts, run_cli, save
from few_bits import DIM, NUM_TOKENS, STORED_NAMES, dense_model, inputs, logits, packed_model, packed_tables
from huggingface_hub import get_local_safetensors_metadata
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

from hf_projclust import compress, decompress
from hf_projclust.cards import write_card
from hf_projclust.packed_projclust import PackedTable
from hf_projclust.sizes import measure
from hf_projclust.vocabulary_projclust import factored_tables

RATIO = 6
# Auto class, options, and the tables that a file has.
MODELS: dict[str, tuple[Any, dict[str, Any], list[str]]] = {
    "bert": (AutoModelForMaskedLM, {}, ["bert.embeddings.word_embeddings"]),  # a tied head with a bias
    "gpt2": (AutoModelForCausalLM, {}, ["transformer.wte"]),  # a tied head without one
    "llama": (AutoModelForCausalLM, {"head": True}, ["model.embed_tokens", "lm_head"]),  # a head of its own
    "t5": (AutoModelForSeq2SeqLM, {}, ["shared"]),  # one table of encoder, decoder and head
    "gemma3": (AutoModelForCausalLM, {}, ["model.embed_tokens"]),  # a class of embedding that scales
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Path]]:
    """Each of the models, compressed, and the folder that it was saved in; tests leave both as they are."""
    models = {name: packed_model(name, **options) for name, (_, options, _) in MODELS.items()}
    return {name: (model, save(model, tmp_path_factory.mktemp(name) / "out")) for name, model in models.items()}


every_model = pytest.mark.parametrize("name", MODELS)


def parameters_and_buffers(model: Any) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]


@every_model
def test_a_reload_is_bit_equal_in_state_and_outputs_and_tied_as_before(name: str, made: Any) -> None:
    model, folder = made[name]
    auto, _, stored = MODELS[name]
    reloaded = auto.from_pretrained(folder)
    assert list(packed_tables(reloaded)) == list(packed_tables(model)) == stored
    assert all(isinstance(table, PackedTable) for table in factored_tables(reloaded).values())
    assert equal_state_dicts(reloaded, model)
    assert torch.equal(logits(reloaded, name), logits(model, name))
    assert len({id(table.coefficients) for table in factored_tables(reloaded).values()}) == len(stored)
    for path, table in factored_tables(model).items():
        assert torch.equal(factored_tables(reloaded)[path].rows, table.rows)


@every_model
def test_outputs_are_near_those_of_the_dense_model_and_equal_those_of_the_dense_copy(name: str, made: Any) -> None:
    model, _ = made[name]
    dense, plain = dense_model(name), decompress(model)
    assert type(plain) is type(dense)
    torch.testing.assert_close(logits(plain, name), logits(model, name), atol=1e-4, rtol=1e-4)
    for record in model.config.projclust["solver"].values():
        assert 0 < record["relative_squared_error"] < 0.002
    ours, theirs = (one.get_input_embeddings().weight.detach() for one in (plain, dense))
    error = float((ours - theirs).square().sum() / theirs.square().sum())
    assert error == pytest.approx(model.config.projclust["solver"]["embedding"]["relative_squared_error"], rel=1e-3)


@every_model
def test_sizes_of_files_layouts_info_and_cards_agree_to_the_byte_and_keep_the_budget(
    name: str, made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    model, _ = made[name]
    folder = save(model, tmp_path / "out")
    names = {f"{table}.{part}" for table in MODELS[name][2] for part in STORED_NAMES}
    files = get_local_safetensors_metadata(folder).files_metadata["model.safetensors"].tensors
    stored = {key: info.data_offsets[1] - info.data_offsets[0] for key, info in files.items() if key in names}
    assert stored.keys() == names
    of_layouts = [table.layout.num_bytes(4) for table in packed_tables(model).values()]
    assert sum(stored.values()) == sum(sum(sizes.values()) for sizes in of_layouts)
    for sizes in of_layouts:
        assert 0.85 * NUM_TOKENS * DIM * 4 / RATIO < sum(sizes.values()) <= NUM_TOKENS * DIM * 4 / RATIO

    dense, compressed = measure(folder)
    assert compressed.table_disk_bytes == sum(stored.values())
    dense_bytes = len(of_layouts) * NUM_TOKENS * DIM * 4
    shown = rf"table, bytes on disk\W+{dense_bytes:,}\W+{sum(stored.values()):,}\W"
    assert re.search(shown, run_cli("info", folder))
    write_card(folder)
    card = (folder / "README.md").read_text()
    assert f"| Factored tables in the file, bytes | {dense_bytes:,} | {sum(stored.values()):,} | " in card
    assert f"Stored in few bits: {dense_bytes / sum(stored.values()):.1f} times smaller." in card

    dense_file = save(dense_model(name), tmp_path / "dense") / "model.safetensors"
    saved_bytes = dense_file.stat().st_size - (folder / "model.safetensors").stat().st_size
    assert saved_bytes == pytest.approx(dense_bytes - sum(stored.values()), abs=2000)  # headers name other tensors
    assert dense.model_disk_bytes == pytest.approx(dense_file.stat().st_size, abs=2000)


@every_model
def test_memory_of_a_loaded_model_is_what_is_said(name: str, made: Any) -> None:
    _, folder = made[name]
    model = MODELS[name][0].from_pretrained(folder)
    storages = {tensor.untyped_storage().data_ptr(): tensor.nbytes for tensor in parameters_and_buffers(model)}
    used = sum(storages.values())
    dense, compressed = measure(folder)
    assert compressed.model_memory_bytes == model.get_memory_footprint() == used
    assert dense.model_memory_bytes == dense_model(name).get_memory_footprint()
    assert compressed.model_parameters < dense.model_parameters == dense_model(name).num_parameters()
    tables = factored_tables(model).values()
    parts = [getattr(table, part) for table in tables for part in (*STORED_NAMES, "rows")]
    assert compressed.table_memory_bytes == sum({id(part): part.nbytes for part in parts}.values())


@pytest.mark.parametrize("max_shard_size", ["20KB", "4KB"])
def test_a_sharded_save_reloads_bit_equal(max_shard_size: str, made: Any, tmp_path: Path) -> None:
    model, _ = made["t5"]
    model.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert equal_state_dicts(AutoModelForSeq2SeqLM.from_pretrained(tmp_path), model)


@every_model
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["deepcopy", "pickle"]
)
def test_copies_are_whole_tied_and_apart(name: str, copied: Any, made: Any) -> None:
    model, _ = made[name]
    twin = copied(model)
    assert type(twin) is type(model)
    assert equal_state_dicts(twin, model)
    assert torch.equal(logits(twin, name), logits(model, name))
    assert len({id(table.coefficients) for table in factored_tables(twin).values()}) == len(MODELS[name][2])
    before = twin.get_input_embeddings().coefficients.clone()
    twin.get_input_embeddings().coefficients.zero_()
    assert torch.equal(model.get_input_embeddings().coefficients, before)


@every_model
def test_a_plain_state_dict_brings_the_order_of_rows_along(name: str, made: Any) -> None:
    """Rows are not in it: they follow from the clusters."""
    model, folder = made[name]
    other = type(model)(model.config).eval()
    assert not torch.equal(logits(other, name), logits(model, name))
    other.load_state_dict(model.state_dict())
    assert equal_state_dicts(other, model)
    assert torch.equal(logits(other, name), logits(model, name))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@every_model
def test_a_load_in_half_precision_casts_scales_and_no_bytes(name: str, dtype: torch.dtype, made: Any) -> None:
    model, folder = made[name]
    half = MODELS[name][0].from_pretrained(folder, dtype=dtype)
    assert half.dtype == dtype
    for path, table in packed_tables(half).items():
        original = packed_tables(model)[path]
        for part in ("coefficients", "bases", "codebooks", "clusters", "rows"):
            assert getattr(table, part).dtype == getattr(original, part).dtype
            assert torch.equal(getattr(table, part), getattr(original, part))
        assert torch.equal(table.scales, original.scales.to(dtype))
    assert logits(half, name).dtype == dtype
    error = (logits(half, name).float() - logits(model, name)).square().mean()
    assert float(error / logits(model, name).var()) < 1e-3


def test_a_model_in_half_precision_is_compressed_and_reloads_bit_equal(tmp_path: Path) -> None:
    model = compress(dense_model("bert").bfloat16(), ratio=4, token_counts="uniform", max_rounds=4)
    [table] = packed_tables(model).values()
    assert table.scales.dtype == torch.bfloat16
    assert sum(table.layout.num_bytes(2).values()) <= NUM_TOKENS * DIM * 2 / 4
    reloaded = AutoModelForMaskedLM.from_pretrained(save(model, tmp_path), dtype="auto")
    assert reloaded.dtype == torch.bfloat16
    assert equal_state_dicts(reloaded, model)
    assert measure(tmp_path)[1].table_disk_bytes == sum(table.layout.num_bytes(2).values())


def test_compressing_saving_loading_and_making_dense_warn_of_nothing(tmp_path: Path, upstream_log: Any) -> None:
    model = packed_model("gpt2")
    decompress(AutoModelForCausalLM.from_pretrained(save(model, tmp_path)))
    assert [record.message for record in upstream_log.records if record.levelname != "INFO"] == []


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_generation_equals_that_of_the_dense_copy(name: str, made: Any) -> None:
    model, _ = made[name]
    ids = inputs(name)["input_ids"][:2]
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones_like(ids)}
    found = [one.eval().generate(ids, **options) for one in (copy.deepcopy(model), decompress(model))]
    assert torch.equal(*found)


@pytest.mark.parametrize("name", ["bert", "gpt2", "t5"])
def test_a_model_with_random_bytes_is_saved_and_reloads(name: str, made: Any, tmp_path: Path) -> None:
    model, _ = made[name]
    fresh = type(model)(type(model.config).from_dict(model.config.to_dict())).eval()
    fresh.save_pretrained(tmp_path)
    assert equal_state_dicts(type(model).from_pretrained(tmp_path), fresh)
