"""Masks for masked language models: which tokens of each text are hidden, drawn by a seed, alike for every model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

MASKED_SHARE = 0.15  # as BERT was trained, arXiv 1810.04805, section 3.1


class MaskedText(NamedTuple):
    """A text with some of its tokens hidden.

    Attributes:
        ids: Token ids, the mask token in place of the hidden ones, shape (tokens,).
        is_masked: Which tokens are hidden, bool, shape (tokens,).
        targets: Token ids with none hidden, shape (tokens,).
    """

    ids: Tensor
    is_masked: Tensor
    targets: Tensor


def mask_texts(texts: Sequence[Tensor], tokenizer: Any, seed: int) -> list[MaskedText]:
    """Hide 15 % of the tokens of each text, at least one; each hidden one becomes the mask token.

    Args:
        texts: Ids of each text, shape (tokens,).
        tokenizer: It says what the mask token is, and which tokens are special, which are not hidden.
        seed: Seed of the draw.

    Returns:
        The texts that have a token which can be hidden.

    Raises:
        ValueError: If the tokenizer has no mask token, or no text has a token that can be hidden.
    """
    if tokenizer.mask_token_id is None:
        raise ValueError(
            "the tokenizer has no mask token; expected one, since the model is a masked language model. Save the model "
            "with the tokenizer that it was trained with."
        )
    special = torch.tensor(sorted(tokenizer.all_special_ids))
    generator = torch.Generator().manual_seed(seed)
    masked = []
    for targets in texts:
        places = (~torch.isin(targets, special)).nonzero().squeeze(1)
        if len(places):
            count = max(1, round(MASKED_SHARE * len(places)))
            is_masked = torch.zeros_like(targets, dtype=torch.bool)
            is_masked[places[torch.randperm(len(places), generator=generator)[:count]]] = True
            masked.append(MaskedText(targets.masked_fill(is_masked, tokenizer.mask_token_id), is_masked, targets))
    if not masked:
        raise ValueError(
            f"{len(texts)} texts have special tokens alone, none of which is hidden from a model; expected texts with "
            "others. Give texts in a language that the tokenizer knows."
        )
    return masked
