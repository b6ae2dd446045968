"""Half precision, and quantisers on the rest of a compressed model."""

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import COMPRESSED, TINY_MODELS, equal_state_dicts
from safetensors.torch import load_file
from torch import nn
from transformers import BertForMaskedLM, BitsAndBytesConfig, TorchAoConfig

from hf_projclust import compress, decompress
from hf_projclust.table_projclust import FactoredTable
from hf_projclust.vocabulary_projclust import factored_tables

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
PARTS = ("coefficients", "bases", "rows")
# T5 keeps a layer of its own in float32 under float16; Gemma 3 scales by a buffer.
NAMES = ["bert", "gpt2", "llama", "t5", "gemma3"]


def cosines(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return torch.cosine_similarity(left.float().flatten(0, -2), right.float().flatten(0, -2))


@torch.no_grad()
def output(model: Any, name: str) -> torch.Tensor:
    return model(**TINY_MODELS[name].inputs())[0]


@pytest.mark.parametrize("stored", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_a_model_of_any_dtype_compresses_and_loads_in_any_dtype(name: str, stored: torch.dtype, tmp_path: Path) -> None:
    dense = TINY_MODELS[name].build().to(stored)
    model = compress(dense, **COMPRESSED)
    assert model.dtype == stored
    model.save_pretrained(tmp_path / "model")
    dense.save_pretrained(tmp_path / "dense")
    in_file = load_file(tmp_path / "model/model.safetensors")
    table = TINY_MODELS[name].tables[0]
    assert [in_file[f"{table}.{part}"].dtype for part in PARTS] == [stored, stored, torch.int32]
    for asked in (*DTYPES, "auto"):
        expected = stored if asked == "auto" else asked
        reloaded = type(model).from_pretrained(tmp_path / "model", dtype=asked)
        native = type(dense).from_pretrained(tmp_path / "dense", dtype=asked)
        for embedding in factored_tables(reloaded).values():
            for part in ("coefficients", "bases"):
                assert torch.equal(getattr(embedding, part), in_file[f"{table}.{part}"].to(expected))
            assert torch.equal(embedding.rows, in_file[f"{table}.rows"])
            assert embedding.rows.dtype == torch.int32
        parameters = dict(reloaded.named_parameters())
        others = {key: other for key, other in native.named_parameters() if key in parameters}
        assert all(parameters[key].dtype == other.dtype for key, other in others.items())
        assert all(torch.equal(parameters[key], other) for key, other in others.items())
        assert reloaded.dtype == reloaded.config.dtype == native.dtype == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_outputs_in_half_precision_are_those_of_full_precision_up_to_rounding(name: str, dtype: torch.dtype) -> None:
    full = TINY_MODELS[name].compressed()
    half = copy.deepcopy(full).to(dtype)
    given, expected = output(half, name), output(full, name)
    assert given.dtype == dtype
    assert cosines(given, expected).min() > 0.999
    assert cosines(given, output(decompress(half), name)).min() > 0.999
    assert (
        cosines(output(compress(TINY_MODELS[name].build().to(dtype), num_clusters=3, rank=16), name), given).max() < 1
    )


CASTS: list[tuple[Callable[[Any], Any], torch.dtype]] = [
    (lambda model: model.half(), torch.float16),
    (lambda model: model.bfloat16(), torch.bfloat16),
    (lambda model: model.to(torch.float16), torch.float16),
    (lambda model: model.to("cpu", dtype=torch.bfloat16), torch.bfloat16),
    (lambda model: model.half().float(), torch.float32),
    (lambda model: model.double(), torch.float64),
]


@pytest.mark.parametrize(("cast", "dtype"), CASTS)
@pytest.mark.parametrize("name", ["bert", "t5", "llama"])
def test_a_cast_changes_factors_leaves_rows_and_keeps_ties(
    name: str, cast: Callable[[Any], Any], dtype: torch.dtype, tmp_path: Path
) -> None:
    model = TINY_MODELS[name].compressed()
    rows = model.get_input_embeddings().rows.clone()
    model = cast(model)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    for table in factored_tables(model).values():
        assert table.coefficients is model.get_input_embeddings().coefficients
        assert table.weight.dtype == dtype
        assert table.rows.dtype == torch.int32
        assert torch.equal(table.rows, rows)
    assert output(model, name).dtype == dtype
    model.save_pretrained(tmp_path)
    reloaded = type(model).from_pretrained(tmp_path).get_input_embeddings()
    assert equal_state_dicts(reloaded, model.get_input_embeddings())


# Quantisers.


def int8_weights() -> TorchAoConfig:
    from torchao.quantization import Int8WeightOnlyConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


QUANTISERS = {
    "bitsandbytes 8 bits": lambda: BitsAndBytesConfig(load_in_8bit=True),
    "bitsandbytes 4 bits": lambda: BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32, bnb_4bit_quant_type="nf4"
    ),
    "torchao 8 bits": int8_weights,
}


WIDER = {
    "bert": {"hidden_size": 64, "intermediate_size": 128},
    "llama": {"hidden_size": 64, "head_dim": 32, "intermediate_size": 128},
    "gemma3": {"hidden_size": 64, "head_dim": 32, "intermediate_size": 128},
    "t5": {"d_model": 64, "d_kv": 32, "d_ff": 128},
}


def wide(name: str) -> Any:
    """A compressed model whose layers are as wide as the kernels of 4 bits ask for."""
    tiny = copy.deepcopy(TINY_MODELS[name])
    for field, value in WIDER[name].items():
        setattr(tiny.config, field, value)
    return tiny.compressed()


def quantised_layers(model: Any) -> set[str]:
    """Names of linear layers that are of bitsandbytes' classes, or hold a tensor of torchao's."""
    linear = {key: module for key, module in model.named_modules() if isinstance(module, nn.Linear)}
    plain = {key for key, module in linear.items() if type(module) is nn.Linear and type(module.weight) is nn.Parameter}
    return linear.keys() - plain


@pytest.mark.parametrize("quantiser", QUANTISERS.values(), ids=QUANTISERS.keys())
@pytest.mark.parametrize("name", ["bert", "llama", "gemma3", "t5"])
def test_a_quantiser_takes_the_layers_that_it_takes_of_the_dense_model_and_leaves_the_factors(
    name: str, quantiser: Callable[[], Any], tmp_path: Path
) -> None:
    model = wide(name)
    model.save_pretrained(tmp_path / "model")
    quantised = type(model).from_pretrained(tmp_path / "model", quantization_config=quantiser())

    dense = decompress(model)
    dense.save_pretrained(tmp_path / "dense")
    native = type(dense).from_pretrained(tmp_path / "dense", quantization_config=quantiser())
    taken = quantised_layers(quantised)
    assert taken == quantised_layers(native) != set()

    tables, originals = factored_tables(quantised), factored_tables(model)
    assert set(tables) == set(TINY_MODELS[name].tables)
    for key, table in tables.items():
        assert all(torch.equal(getattr(table, part), getattr(originals[key], part)) for part in PARTS)

    # Saved before the first use, after which bitsandbytes on a CPU holds 4-bit weights in another order.
    quantised.save_pretrained(tmp_path / "again")
    again = type(model).from_pretrained(tmp_path / "again")
    assert quantised_layers(again) == taken
    assert all(isinstance(again.get_submodule(key), FactoredTable) for key in tables)
    given, expected = output(quantised, name), output(model, name)
    assert not torch.equal(given, expected)
    assert cosines(given, expected).min() > 0.98
    torch.testing.assert_close(output(again, name), given, rtol=0, atol=1e-5)


def test_a_native_class_reports_that_a_quantised_folder_has_no_table(tmp_path: Path, upstream_log) -> None:
    """Such a folder has no byte by which it would be refused: the table is filled at random, and that is said."""
    model = wide("bert")
    model.save_pretrained(tmp_path / "model")
    eight_bits = BitsAndBytesConfig(load_in_8bit=True)
    type(model).from_pretrained(tmp_path / "model", quantization_config=eight_bits).save_pretrained(tmp_path / "again")
    _, report = BertForMaskedLM.from_pretrained(tmp_path / "again", output_loading_info=True)
    table, head = (f"{name}.weight" for name in TINY_MODELS["bert"].tables)
    assert report["missing_keys"] == {table, head}
    assert re.search(rf"{re.escape(table)} *\| MISSING", upstream_log.text)


def test_a_quantised_compressed_model_is_decompressed_after_dequantising(tmp_path: Path) -> None:
    model = wide("llama")
    model.save_pretrained(tmp_path)
    quantised = type(model).from_pretrained(tmp_path, quantization_config=BitsAndBytesConfig(load_in_8bit=True))
    with pytest.raises(ValueError, match="is quantised; expected float weights.*dequantize"):
        decompress(quantised)
    dense = decompress(quantised.dequantize())
    assert torch.equal(dense.get_input_embeddings().weight, model.get_input_embeddings().dense_weight())
    assert cosines(output(dense, "llama"), output(model, "llama")).min() > 0.98
