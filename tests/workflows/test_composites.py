"""Compressed models as parts of native ones, whose files must not be taken for dense ones."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import COMPRESSED, TINY_MODELS, build_llava
from transformers import (
    AutoModel,
    BertConfig,
    BertLMHeadModel,
    BertModel,
    EncoderDecoderModel,
)

from hf_projclust import compress, decompress


def pair(encoder: Any) -> EncoderDecoderModel:
    config = TINY_MODELS["bert"].config.to_dict() | {"is_decoder": True, "add_cross_attention": True}
    torch.manual_seed(0)
    return EncoderDecoderModel(encoder=encoder, decoder=BertLMHeadModel(BertConfig(**config))).eval()


@torch.no_grad()
def test_a_compressed_part_computes_and_its_whole_is_refused_when_it_is_read_again(tmp_path: Path) -> None:
    encoder = compress(BertModel(copy.deepcopy(TINY_MODELS["bert"].config)), **COMPRESSED)
    composite = pair(encoder)
    ids = TINY_MODELS["bert"].inputs()["input_ids"]
    expected = pair(decompress(encoder))(input_ids=ids, decoder_input_ids=ids).logits
    torch.testing.assert_close(composite(input_ids=ids, decoder_input_ids=ids).logits, expected, atol=1e-5, rtol=0)
    composite.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="raising an error"):
        EncoderDecoderModel.from_pretrained(tmp_path)
    again = copy.deepcopy(composite)
    torch.nn.init.zeros_(again.encoder.get_input_embeddings().coefficients)
    again.load_state_dict(composite.state_dict())
    torch.testing.assert_close(again(input_ids=ids, decoder_input_ids=ids).logits, expected, atol=1e-5, rtol=0)


def test_a_native_class_that_is_to_ignore_mismatches_reports_that_it_has_no_table(tmp_path: Path, upstream_log) -> None:
    """It is not refused then: Transformers fills the table at random, and says so."""
    TINY_MODELS["bert"].compressed().save_pretrained(tmp_path)
    _, report = BertModel.from_pretrained(tmp_path, ignore_mismatched_sizes=True, output_loading_info=True)
    assert {name for name, *_ in report["mismatched_keys"]} == {"embeddings.word_embeddings.weight"}
    assert re.search(r"embeddings\.word_embeddings\.weight *\| MISMATCH", upstream_log.text)


@pytest.mark.parametrize("part", ["transformer", "model"])
def test_a_native_part_of_a_compressed_model_is_refused_by_its_own_class(part: str, tmp_path: Path) -> None:
    model = compress(TINY_MODELS["gpt2"].build() if part == "transformer" else build_llava(), **COMPRESSED)
    inner = getattr(model, part)
    inner.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="raising an error"):
        type(inner).from_pretrained(tmp_path)
    again, report = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert torch.equal(again.get_input_embeddings().coefficients, model.get_input_embeddings().coefficients)
