"""The text model of a composite loads from the composite's checkpoint, as Auto classes do it for native models."""

from pathlib import Path

import pytest
import torch
from architectures import tiny_model
from conftest import equal_state_dicts
from tiny_configs import VOCAB_SIZE
from transformers import AutoModelForCausalLM

from hf_projclust import compress, decompress


@pytest.mark.parametrize("model_type", ["llama4", "mllama", "qwen3_5"])
def test_a_text_model_loads_from_the_checkpoint_of_a_composite(model_type: str, tmp_path: Path) -> None:
    class_name = f"{model_type.title()}ForConditionalGeneration"
    model = compress(tiny_model(model_type, class_name, "cpu"), num_clusters=3, compression=0.3, token_counts="uniform")
    model.save_pretrained(tmp_path / "compressed")
    decompress(model).save_pretrained(tmp_path / "dense")

    text, report = AutoModelForCausalLM.from_pretrained(tmp_path / "compressed", output_loading_info=True)
    native = AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    assert isinstance(text, type(native))
    assert not report["missing_keys"]
    input_ids = torch.arange(VOCAB_SIZE - 24, VOCAB_SIZE)[None]
    with torch.no_grad():
        assert torch.allclose(text(input_ids=input_ids).logits, native(input_ids=input_ids).logits, atol=1e-5)

    eager = AutoModelForCausalLM.from_pretrained(tmp_path / "compressed", attn_implementation="eager")
    assert [each.config._attn_implementation for each in (text, eager)] == ["sdpa", "eager"]
    assert text.config.name_or_path == str(tmp_path / "compressed")

    text.save_pretrained(tmp_path / "text")
    assert equal_state_dicts(text, type(text).from_pretrained(tmp_path / "text"))
