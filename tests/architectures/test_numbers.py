"""A compressed model computes what the dense model with the same table computes, and reloads as it was saved."""

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import PINNED, every_model_class, no_skip, tiny_model
from conftest import equal_state_dicts
from safetensors import safe_open
from tiny_configs import FIRST_TEXT_TOKEN
from torch import Tensor
from transformers import AutoConfig

from hf_projclust import compress, decompress
from hf_projclust.vocabulary_projclust import vocabulary_modules

LENGTH = 16

REFUSED = {("bark", name) for name in ("BarkCausalModel", "BarkCoarseModel", "BarkSemanticModel")}


@pytest.mark.parametrize(("model_type", "class_name"), PINNED)
def test_outputs_equal_those_of_the_dense_model_with_the_same_table(
    model_type: str, class_name: str, tmp_path: Path
) -> None:
    with no_skip():
        check(model_type, class_name, tmp_path)


@pytest.mark.sweep
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("model_type", "class_name"), sorted({*every_model_class()} - REFUSED))
def test_every_class_computes_as_the_dense_model_with_the_same_table(
    model_type: str, class_name: str, tmp_path: Path
) -> None:
    check(model_type, class_name, tmp_path)


@pytest.mark.sweep
@pytest.mark.parametrize(("model_type", "class_name"), sorted(REFUSED))
def test_every_class_that_autoconfig_knows_no_configuration_of_is_refused(model_type: str, class_name: str) -> None:
    with pytest.raises(ValueError, match="expected one that AutoConfig finds by its model type"):
        compress(tiny_model(model_type, class_name, "cpu"), compression=0.3)


def check(model_type: str, class_name: str, tmp_path: Path) -> None:
    native = tiny_model(model_type, class_name, "cpu")
    try:
        groups = vocabulary_modules(native)
    except ValueError:
        pytest.skip("no token embedding")
    table = groups["embedding"][0].weight
    torch.nn.init.normal_(table)
    padding = native.get_input_embeddings().padding_idx
    if padding is not None:
        with torch.no_grad():
            table[padding] = 0  # some classes set it whenever they are loaded
    inputs = inputs_that_run(native)
    has_own_head = bool(groups["head"]) and isinstance(groups["head"][0], torch.nn.Linear)
    options = {"token_counts": "uniform", "num_starts": 1, "max_rounds": 3, "head": has_own_head}
    model = compress(native, num_clusters=3, compression=0.3, **options)
    dense = decompress(model)

    token_ids = torch.arange(len(table))
    with torch.no_grad():
        looked_up, rows = model.get_input_embeddings()(token_ids), dense.get_input_embeddings()(token_ids)
    assert difference([looked_up], [rows]) <= 1e-5
    expected = outputs(dense, inputs)
    effect = difference(expected, outputs(native, inputs))
    if effect < 1e-6:
        pytest.skip("outputs do not depend on the table")
    assert difference(outputs(model, inputs), expected) <= min(1e-4, 0.01 * effect)

    dense.save_pretrained(tmp_path / "dense")
    native.save_pretrained(tmp_path / "native")
    assert names_in_files(tmp_path / "dense") == names_in_files(tmp_path / "native")
    _, native_report = type(native).from_pretrained(tmp_path / "native", output_loading_info=True)
    if any(native_report.values()):
        pytest.skip("native class does not reload what it saved")
    model.save_pretrained(tmp_path / "compressed")
    config = AutoConfig.from_pretrained(tmp_path / "compressed")
    assert type(config) is type(model.config)
    reloaded, report = type(model).from_pretrained(tmp_path / "compressed", config=config, output_loading_info=True)
    assert not any(report.values())
    assert equal_state_dicts(model, reloaded)


def inputs_that_run(model: Any) -> dict[str, Any]:
    """Inputs that the native class takes; skips where none of the kinds does."""
    errors = []
    for inputs in possible_inputs(model):
        try:
            if outputs(model, inputs):
                return inputs
        except Exception as error:  # noqa: BLE001 (whatever the class raises)
            errors.append(f"{type(error).__name__}: {' '.join(str(error).split())[:70]}")
    pytest.skip(f"native class does not run: {errors[0] if errors else 'no output'}")


def possible_inputs(model: Any) -> Iterator[dict[str, Any]]:
    """Text alone; then with what else the class may want."""
    config, names = model.config, inspect.signature(model.forward).parameters
    num_tokens = model.get_input_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(num_tokens, generator=generator)
    order = order[order >= min(FIRST_TEXT_TOKEN, num_tokens - LENGTH)][: LENGTH - 2]
    eos = getattr(config, "eos_token_id", None)
    last = eos if isinstance(eos, int) else num_tokens - 1
    ids = torch.cat([torch.tensor([num_tokens - 1]), order, torch.tensor([last])])[None]  # (1, LENGTH)

    def text(ids: Tensor) -> dict[str, Any]:
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        if config.is_encoder_decoder:
            inputs["decoder_input_ids"] = ids.flip(-1)
        if "qformer_input_ids" in names:
            inputs["qformer_input_ids"] = ids
        if "bbox" in names:
            inputs["bbox"] = torch.ones(*ids.shape, 4, dtype=torch.long)
        if "use_cache" in names:
            inputs["use_cache"] = False
        return {name: value for name, value in inputs.items() if name in names}

    image = torch.randn(1, 3, 32, 32, generator=generator)
    extras = [
        ("pixel_values", image),
        ("input_features", torch.randn(1, 80, 128, generator=generator)),
        ("input_features", torch.randn(1, 128, 80, generator=generator)),
        ("input_features", torch.randn(1, 64, 160, generator=generator)),
        ("input_values", torch.randn(1, 4000, generator=generator)),
    ]
    yield text(ids)
    for name, value in extras:
        if name in names:
            yield {**text(ids), name: value}
            yield {name: value, "decoder_input_ids": ids}
    image_token = getattr(config, "image_token_id", getattr(config, "image_token_index", None))
    if "pixel_values" in names and image_token is not None:
        for num_image_tokens in (1, 2, 4, 8, 16, 32):
            places = torch.full((1, num_image_tokens), image_token)
            yield {**text(torch.cat([places, ids], dim=1)), "pixel_values": image}
    yield text(ids[:, None].expand(-1, 2, -1))  # multiple choice


def outputs(model: Any, inputs: dict[str, Any]) -> list[Tensor]:
    torch.manual_seed(0)
    with torch.no_grad():
        return list(float_tensors(model(**inputs)))


def float_tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from float_tensors(item)


def difference(left: list[Tensor], right: list[Tensor]) -> float:
    assert [tensor.shape for tensor in left] == [tensor.shape for tensor in right]
    return max(float((a.float() - b.float()).abs().max()) for a, b in zip(left, right, strict=True) if a.numel())


def names_in_files(folder: Path) -> set[str]:
    names: set[str] = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            names |= set(file.keys())
    return names
