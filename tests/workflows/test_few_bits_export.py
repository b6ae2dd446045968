"""Graphs of a model in few bits that run elsewhere, on other tokens and shapes than they were made with."""

from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from few_bits import DIM, NUM_TOKENS, inputs, packed_model, packed_tables

NAMES = ("input_ids", "attention_mask")


@pytest.fixture(scope="module")
def model() -> Any:
    """A causal model with a tied head."""
    model = packed_model("gpt2").eval()
    model.config.use_cache = False
    return model


def batch(rows: int, length: int) -> dict[str, torch.Tensor]:
    ids = inputs("bert")["input_ids"][:rows, :length]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.fixture
def example(model: Any) -> dict[str, torch.Tensor]:
    ids = model.get_input_embeddings().rows.argsort()[:4].view(2, 2)  # stored first: all in the first cluster
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@torch.no_grad()
def expected(model: Any, given: dict[str, torch.Tensor]) -> torch.Tensor:
    return model(**given).logits


def test_an_exported_program_equals_eager_for_other_shapes(model: Any, example: dict, tmp_path: Path) -> None:
    dynamic = {name: {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=40)} for name in NAMES}
    torch.export.save(torch.export.export(model, (), example, dynamic_shapes=dynamic), tmp_path / "model.pt2")
    logits = torch.export.load(tmp_path / "model.pt2").module()(**batch(4, 12)).logits
    torch.testing.assert_close(logits, expected(model, batch(4, 12)), atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:# The axis name:UserWarning")
@pytest.mark.filterwarnings("ignore:`isinstance:FutureWarning")  # of torch, in its own exporter
def test_onnx_equals_eager_for_other_shapes_and_holds_the_bytes(model: Any, example: dict, tmp_path: Path) -> None:
    torch.onnx.export(
        model,
        (),
        tmp_path / "model.onnx",
        kwargs=example,
        dynamo=True,
        input_names=NAMES,
        output_names=["logits"],
        dynamic_shapes={name: {0: "batch", 1: "length"} for name in NAMES},
    )
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {name: tensor.numpy() for name, tensor in batch(4, 12).items()})
    torch.testing.assert_close(torch.from_numpy(logits), expected(model, batch(4, 12)), atol=1e-4, rtol=1e-4)
    stored = onnx.load(tmp_path / "model.onnx").graph.initializer
    numbers = {tuple(tensor.dims): tensor.data_type for tensor in stored}
    [table] = packed_tables(model).values()
    assert numbers[tuple(table.coefficients.shape)] == onnx.TensorProto.UINT8
    floating = [len(tensor.raw_data) for tensor in stored if tensor.data_type == onnx.TensorProto.FLOAT]
    assert max(floating) < NUM_TOKENS * DIM * 4 / 4


@pytest.mark.filterwarnings("ignore:Converting a tensor to a Python boolean:torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit.")  # the function still works
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_a_traced_module_equals_eager_for_other_shapes(model: Any, example: dict, tmp_path: Path) -> None:
    torch.jit.trace(model, example_kwarg_inputs=example, strict=False).save(tmp_path / "model.pt")
    logits = torch.jit.load(tmp_path / "model.pt")(**batch(4, 12))["logits"]
    torch.testing.assert_close(logits, expected(model, batch(4, 12)), atol=1e-4, rtol=1e-4)
