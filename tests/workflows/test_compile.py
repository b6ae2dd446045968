"""torch.compile of compressed models: one whole graph for any batch, equal to eager, forward and backward."""

import shutil

import pytest
import torch
from conftest import TINY_MODELS, VOCAB_SIZE, Tiny
from torch import nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding

from hf_projclust.embedding_projclust import factor_in_place
from hf_projclust.layout_projclust import FactorLayout


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch._dynamo.reset()


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    return found


def test_a_compiled_encoder_equals_eager_for_batches_of_any_shape() -> None:
    check_compiled(TINY_MODELS["distilbert"])


def test_a_compiled_language_model_with_a_tied_head_equals_eager_for_batches_of_any_shape() -> None:
    check_compiled(TINY_MODELS["gpt2"])


def check_compiled(tiny: Tiny) -> None:
    model = tiny.compressed()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    inputs = tiny.inputs()  # every token of every cluster, the last id first
    assert inputs["input_ids"].flatten()[0] == VOCAB_SIZE - 1
    found, expected = compiled(**inputs).logits, model(**inputs).logits
    torch.testing.assert_close(found, expected)
    found.square().mean().backward()
    found_gradients = gradients(model)
    expected.square().mean().backward()
    expected_gradients = gradients(model)
    assert expected_gradients.keys() == dict(model.named_parameters()).keys()
    torch.testing.assert_close(found_gradients, expected_gradients)
    graphs = []
    for rows, length in ((3, 7), (5, 9), (2, 11)):
        batch = {name: values[:rows, :length] for name, values in inputs.items()}
        torch.testing.assert_close(compiled(**batch).logits, model(**batch).logits)
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs[0] == graphs[-1]


@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="native code needs a C++ compiler")
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_a_natively_compiled_table_with_a_tied_head_equals_eager() -> None:
    torch.manual_seed(0)
    layout = FactorLayout(6, (4, 1, 3, 2, 0, 1), (2, 1, 0, 6, 3, 5))
    # This class scales, and reads the dtype of its weight to do so.
    table, head = Gemma3TextScaledWordEmbedding(11, 6, padding_idx=0, embed_scale=3.0), nn.Linear(6, 11)
    for module in (table, head):
        factor_in_place(module, layout)
    nn.init.normal_(table.coefficients)
    nn.init.normal_(table.bases)
    head.coefficients, head.bases = table.coefficients, table.bases
    head.rows = table.rows.copy_(torch.randperm(11))
    model = nn.Sequential(table, head)
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="inductor")
    for ids in (torch.arange(11).flip(0).repeat(2, 1), torch.randint(11, (4, 5))):
        with torch.no_grad():
            torch.testing.assert_close(compiled(ids), model(ids))
        found, expected = compiled(ids), model(ids)
        torch.testing.assert_close(found, expected)
        found.square().sum().backward()
        found_gradients = gradients(model)
        expected.square().sum().backward()
        torch.testing.assert_close(found_gradients, gradients(model))
