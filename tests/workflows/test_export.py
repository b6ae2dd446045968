"""Graphs of a compressed model that run elsewhere, on other tokens and shapes than they were made with.

The inputs of the tiny models hold every token, so every cluster and the last id. What a graph is made with holds four
tokens of one cluster: it must not keep which clusters those were in, nor how many there were.
"""

import math
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from conftest import TINY_MODELS

NAMES = ("input_ids", "attention_mask")


@pytest.fixture(params=["bert", "gpt2"])
def tiny(request: pytest.FixtureRequest):
    """An encoder and a causal model, both with a tied head; one with a padding row, one without."""
    return TINY_MODELS[request.param]


@pytest.fixture
def model(tiny):
    model = tiny.compressed().eval()
    model.config.use_cache = False
    return model


@pytest.fixture
def example(model) -> dict[str, torch.Tensor]:
    ids = model.get_input_embeddings().rows.argsort()[:4].view(2, 2)  # stored first: all in the first cluster
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@torch.no_grad()
def expected(model, tiny) -> torch.Tensor:
    return model(**tiny.inputs()).logits


def test_an_exported_program_equals_eager_for_other_shapes_and_all_tokens(
    tiny, model, example: dict, tmp_path: Path
) -> None:
    dynamic = {name: {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=40)} for name in NAMES}
    torch.export.save(torch.export.export(model, (), example, dynamic_shapes=dynamic), tmp_path / "model.pt2")
    logits = torch.export.load(tmp_path / "model.pt2").module()(**tiny.inputs()).logits
    torch.testing.assert_close(logits, expected(model, tiny), atol=1e-4, rtol=0)


@pytest.mark.filterwarnings("ignore:# The axis name:UserWarning")
@pytest.mark.filterwarnings("ignore:`isinstance:FutureWarning")  # of torch, in its own exporter
def test_onnx_equals_eager_for_other_shapes_and_all_tokens_and_stays_small(
    tiny, model, example: dict, tmp_path: Path
) -> None:
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
    (logits,) = session.run(["logits"], {name: tiny.inputs()[name].numpy() for name in NAMES})
    torch.testing.assert_close(torch.from_numpy(logits), expected(model, tiny), atol=1e-4, rtol=0)
    stored = onnx.load(tmp_path / "model.onnx").graph.initializer
    assert sum(math.prod(tensor.dims) for tensor in stored) < tiny.build().num_parameters()


@pytest.mark.filterwarnings("ignore:Converting a tensor to a Python boolean:torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit.")  # the function still works
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_a_traced_module_equals_eager_for_other_shapes_and_all_tokens(
    tiny, model, example: dict, tmp_path: Path
) -> None:
    torch.jit.trace(model, example_kwarg_inputs=example, strict=False).save(tmp_path / "model.pt")
    logits = torch.jit.load(tmp_path / "model.pt")(**tiny.inputs())["logits"]
    torch.testing.assert_close(logits, expected(model, tiny), atol=1e-4, rtol=0)
