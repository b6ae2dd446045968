"""Perplexity of one language model on a text: exp of the mean cross-entropy of its tokens, in nats.

A causal model reads the whole text in windows that overlap by half, and each token counts once, with at least half a
window before it but for the first ones (https://huggingface.co/docs/transformers/perplexity). Of a masked model it is
that of the tokens which are hidden from it, 15 % of each text: a number to compare models by, not the likelihood of the
text, and no comparison with that of a causal model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers.utils import logging

from ..configuration_projclust import ProjClustConfigMixin
from ..outputs import logits_of
from .batches import MAX_LENGTH, batches_of_one_length, check_finite, longest
from .masking import mask_texts

_MOST_NUMBERS = 2**24  # of logits at a time that are made float32: 64 MiB


def causal_perplexity(model: Any, tokenizer: Any, lines: Sequence[str], *, max_length: int = MAX_LENGTH) -> float:
    """Perplexity of a causal language model on a text.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        lines: The lines of the text, which are joined by line ends.
        max_length: Tokens of a window, at most; tokenizer and model may allow fewer.

    Returns:
        The perplexity, over all tokens but the first, which nothing stands before.

    Raises:
        ValueError: If the text has fewer than two tokens, or windows would have; if a logit is NaN or infinite, or the
            perplexity is beyond what a float holds.
    """
    window = longest(tokenizer, model, max_length)
    text = tokenizer("\n".join(lines), truncation=False, verbose=False)["input_ids"]
    if len(text) < 2 or window < 2:
        raise ValueError(
            f"a text of {len(text)} tokens in windows of {window}; expected two or more of both. Give more text, or a "
            "larger max_length."
        )
    ids = torch.tensor(text)
    total, scored = 0.0, 1
    with logging.tqdm(desc="Perplexity", total=len(ids), initial=1, unit=" tokens") as progress:
        for end in range(min(window, len(ids)), len(ids) + window // 2, window // 2):
            end = min(end, len(ids))
            begin = max(0, end - window)
            logits = logits_of(model, ids[begin:end].unsqueeze(0)).squeeze(0)  # (tokens, vocabulary)
            check_finite(logits, "logits", _whose(model))
            total += _cross_entropy(logits[scored - begin - 1 : -1], ids[scored:end])  # each gives the next token
            progress.update(end - scored)
            scored = end
            if end == len(ids):
                break
    return _exp(total / (len(ids) - 1), _whose(model))


def masked_perplexity(model: Any, texts: Sequence[Tensor], *, tokenizer: Any, batch_size: int, seed: int) -> float:
    """Perplexity of a masked language model at the tokens that are hidden from it, all of a text at once.

    Args:
        model: The model.
        texts: Ids of each text, shape (tokens,).
        tokenizer: Its tokenizer.
        batch_size: Texts that are computed at a time, at most.
        seed: Seed of the draw of 15 % of the tokens.

    Returns:
        The perplexity, over all hidden tokens.

    Raises:
        ValueError: If the tokenizer has no mask token, or no token can be hidden; if a logit is NaN or infinite, or the
            perplexity is beyond what a float holds.
    """
    masked = mask_texts(texts, tokenizer, seed)
    vocab_size = model.config.get_text_config().vocab_size
    total, count = 0.0, 0
    with logging.tqdm(desc="Perplexity", total=len(masked), unit=" texts") as progress:
        for numbers in batches_of_one_length([len(text.ids) for text in masked], batch_size, vocab_size):
            chosen = [masked[number] for number in numbers]
            ids, is_masked, targets = (torch.stack(parts) for parts in zip(*chosen, strict=True))  # (texts, tokens)
            logits = logits_of(model, ids)
            check_finite(logits, "logits", _whose(model))
            total += _cross_entropy(logits[is_masked.to(logits.device)], targets[is_masked])
            count += int(is_masked.sum())
            progress.update(len(numbers))
    return _exp(total / count, _whose(model))


def _cross_entropy(logits: Tensor, targets: Tensor) -> float:
    """Sum of cross-entropies in nats, of logits (tokens, vocabulary) and targets (tokens,)."""
    rows = max(1, _MOST_NUMBERS // logits.shape[-1])
    parts = zip(logits.split(rows), targets.to(logits.device).split(rows), strict=True)
    return sum(float(cross_entropy(some.float(), wanted, reduction="none").double().sum()) for some, wanted in parts)


def _exp(mean: float, of: str) -> float:
    if not mean < 700:  # beyond which a float is infinite
        raise ValueError(
            f"the mean cross-entropy of {of} is {mean:.6g} nats a token, whose exponential no float holds; expected a "
            "model that gives some probability to the text. Check its weights."
        )
    return math.exp(mean)


def _whose(model: Any) -> str:
    kind = "compressed" if isinstance(model.config, ProjClustConfigMixin) else "dense"
    return f"the {kind} model"
