"""Tokens that are hidden from masked language models."""

from typing import Any

import pytest
import torch

from hf_projclust.evaluation.masking import mask_texts

TEXTS = [torch.tensor([2, *range(5, 5 + length), 3]) for length in (1, 20, 40)]  # [CLS] ... [SEP]


def test_a_seed_hides_the_same_share_of_each_text_and_no_special_token(tokenizer: Any) -> None:
    masked = mask_texts(TEXTS, tokenizer, 0)
    assert [int(text.is_masked.sum()) for text in masked] == [1, 3, 6]
    for text, targets in zip(masked, TEXTS, strict=True):
        assert torch.equal(text.targets, targets)
        assert bool((text.ids[text.is_masked] == tokenizer.mask_token_id).all())
        assert torch.equal(text.ids[~text.is_masked], targets[~text.is_masked])
        assert bool((targets[text.is_masked] >= 5).all())
    for again, other in zip(mask_texts(TEXTS, tokenizer, 0), masked, strict=True):
        assert torch.equal(again.ids, other.ids)
    assert not torch.equal(mask_texts(TEXTS, tokenizer, 1)[2].ids, masked[2].ids)


def test_texts_without_a_token_to_hide_are_left_out_and_all_of_them_refused(tokenizer: Any) -> None:
    special = torch.tensor([2, 3])
    assert len(mask_texts([special, TEXTS[0]], tokenizer, 0)) == 1
    with pytest.raises(ValueError, match="1 texts have special tokens alone"):
        mask_texts([special], tokenizer, 0)


def test_a_tokenizer_without_a_mask_token_is_refused(tokenizer: Any) -> None:
    tokenizer.mask_token = None
    with pytest.raises(ValueError, match="has no mask token"):
        mask_texts(TEXTS, tokenizer, 0)
