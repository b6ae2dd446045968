"""Tables that stay in their file: found in every kind of checkpoint, read in blocks, the same model in the end."""

from pathlib import Path

import pytest
import torch
from conftest import COMPRESSED, TINY_MODELS, VOCAB_SIZE, WIDTH, Tiny, equal_state_dicts

from hf_projclust import compress
from hf_projclust.loading import load_model_without_tables
from hf_projclust.tables import TableFile, find_table
from hf_projclust.vocabulary_projclust import vocabulary_modules


@pytest.mark.parametrize("shard_size", ["1GB", "4KB"])
def test_a_limit_on_memory_gives_the_same_model(tiny: Tiny, shard_size: str, tmp_path: Path) -> None:
    tiny.build().save_pretrained(tmp_path, max_shard_size=shard_size)
    whole, limited = (compress(tmp_path, **COMPRESSED, memory_limit=limit) for limit in (None, "250KB"))
    assert type(limited) is type(whole)
    assert limited.get_input_embeddings().layout == whole.get_input_embeddings().layout
    states = whole.state_dict(), limited.state_dict()
    assert states[0].keys() == states[1].keys()
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor, atol=1e-5, rtol=1e-4)
    assert limited.name_or_path == str(tmp_path)
    assert limited.device == whole.device
    assert all(parameter.requires_grad for parameter in limited.parameters())


def test_a_limit_on_memory_reads_a_model_in_memory_in_blocks_too() -> None:
    dense = TINY_MODELS["bert"].build()
    whole, limited = (compress(dense, **COMPRESSED, memory_limit=limit) for limit in (None, "250KB"))
    assert torch.equal(whole.get_input_embeddings().rows, limited.get_input_embeddings().rows)


def test_the_table_is_on_no_device_and_the_rest_is_loaded(tmp_path: Path) -> None:
    dense = TINY_MODELS["bert"].build().bfloat16()
    dense.save_pretrained(tmp_path)
    model, tables = load_model_without_tables(
        tmp_path, lambda model: {"embedding": vocabulary_modules(model)["embedding"]}
    )
    table = tables["embedding"]
    assert model.get_input_embeddings().weight.is_meta
    assert not any(parameter.is_meta for name, parameter in model.named_parameters() if "word_embeddings" not in name)
    assert table.shape == (VOCAB_SIZE, WIDTH)
    assert table.dtype == torch.bfloat16
    assert torch.equal(table[40:50], dense.get_input_embeddings().weight[40:50])


def test_the_body_of_a_task_checkpoint_is_found_by_the_end_of_its_name(tmp_path: Path) -> None:
    TINY_MODELS["bert"].build().bert.save_pretrained(tmp_path)
    for name in ("bert.embeddings.word_embeddings.weight", "word_embeddings.weight"):
        assert find_table(tmp_path, [name], VOCAB_SIZE).key == "embeddings.word_embeddings.weight"


def test_a_folder_without_safetensors_is_refused(tmp_path: Path) -> None:
    dense = TINY_MODELS["roberta"].build()
    dense.config.save_pretrained(tmp_path)
    torch.save(dense.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"has pytorch_model.bin; expected safetensors files. Pickled"):
        compress(tmp_path, **COMPRESSED, memory_limit="1MB")


def test_a_compressed_folder_is_refused(tmp_path: Path) -> None:
    compress(TINY_MODELS["bert"].build(), **COMPRESSED).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is compressed already; expected a dense model. Compress the dense"):
        compress(tmp_path, **COMPRESSED, memory_limit="1MB")


def test_a_checkpoint_without_the_table_is_refused(tmp_path: Path) -> None:
    TINY_MODELS["bert"].build().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"no table of 97 tokens under the name other.weight; expected.*Leave"):
        find_table(tmp_path, ["other.weight"], VOCAB_SIZE)


@pytest.mark.parametrize("limit", ["20KB", 20_000])
def test_a_limit_below_one_block_is_refused_with_the_least_one(limit: int | str, tmp_path: Path) -> None:
    dense = TINY_MODELS["bert"].build()
    with pytest.raises(ValueError, match=r"memory_limit=20,000 bytes is too small.*97 x 16.*at least [\d,]+.*Raise"):
        compress(dense, **COMPRESSED, memory_limit=limit)


def test_slices_of_a_file_are_those_of_the_tensor(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    tensor = torch.randn(10, 3)
    save_file({"a": tensor, "b": torch.zeros(2)}, tmp_path / "x.safetensors")
    table = TableFile(tmp_path / "x.safetensors", "a", (10, 3), torch.float32)
    assert torch.equal(table[3:7], tensor[3:7])


def test_equal_arguments_give_equal_models_from_a_file(tmp_path: Path) -> None:
    TINY_MODELS["t5"].build().save_pretrained(tmp_path)
    first, second = (compress(tmp_path, **COMPRESSED, memory_limit="250KB") for _ in range(2))
    assert equal_state_dicts(first, second)
