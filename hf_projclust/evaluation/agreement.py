"""How close two models of one vocabulary stay to one another, without labels: hidden states, and predicted tokens.

Both models compute each batch one after the other, so neither states nor logits of a whole text file are ever held.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, kl_div, log_softmax
from transformers.utils import logging

from ..losses import share
from ..outputs import last_states, logits_of
from .batches import batches_of_one_length, check_finite, language_model_kind
from .masking import mask_texts

_MOST_NUMBERS = 2**22  # of log-probabilities at a time, 32 MiB in float64


def compare_states(dense: Any, compressed: Any, texts: Sequence[Tensor], *, batch_size: int) -> dict[str, float]:
    """Compare the last hidden states of two models, those of the encoder where there is one.

    Args:
        dense: The model to compare with.
        compressed: The model that should be close to it.
        texts: Ids of each text, shape (tokens,).
        batch_size: Texts that are computed at a time, at most.

    Returns:
        "mean_cosine" of the texts' embeddings, the means of the states over tokens; and "hidden_error", the squared
        distance of the states over the squared norm of the dense ones, both summed over all tokens; 0 where all dense
        states are zero.

    Raises:
        ValueError: If a state is NaN or infinite.
    """
    cosines = distance = norm = 0.0
    for numbers in _batches(texts, batch_size, dense.config.get_text_config().hidden_size, "hidden states"):
        ids = torch.stack([texts[number] for number in numbers])  # (texts, tokens)
        expected, found = last_states(dense, ids), last_states(compressed, ids)  # (texts, tokens, width)
        for states, of in ((expected, "the dense model"), (found, "the compressed model")):
            check_finite(states, "hidden states", of)
        cosines += float(cosine_similarity(found.mean(dim=1), expected.mean(dim=1), dim=-1).double().sum())
        distance += float((found - expected).double().square().sum())
        norm += float(expected.double().square().sum())
    return {"mean_cosine": cosines / len(texts), "hidden_error": share(distance, norm)}


def compare_predictions(
    dense: Any, compressed: Any, texts: Sequence[Tensor], *, tokenizer: Any, batch_size: int, seed: int
) -> dict[str, float]:
    """Compare the tokens that two language models predict.

    Those of causal models and of decoders are compared after every token, those of masked models at 15 % of the
    places, which are hidden from both.

    Args:
        dense: The model to compare with.
        compressed: The model that should be close to it.
        texts: Ids of each text, shape (tokens,).
        tokenizer: The tokenizer of both.
        batch_size: Texts that are computed at a time, at most.
        seed: Seed of the places that are hidden.

    Returns:
        "kl": KL(dense || compressed) in nats a token; and "top1_agreement": the share of tokens of which both give the
        largest logit to the same, in percent.

    Raises:
        ValueError: If the tokenizer of masked models has no mask token, or no token can be hidden; or if a logit is NaN
            or infinite.
    """
    inputs, chosen = list(texts), [torch.ones_like(ids, dtype=torch.bool) for ids in texts]
    if language_model_kind(dense) == "masked":
        masked = mask_texts(texts, tokenizer, seed)
        inputs, chosen = [text.ids for text in masked], [text.is_masked for text in masked]
    kl, agreed, count = 0.0, 0, 0
    for numbers in _batches(inputs, batch_size, dense.config.get_text_config().vocab_size, "predictions"):
        ids = torch.stack([inputs[number] for number in numbers])  # (texts, tokens)
        places = torch.stack([chosen[number] for number in numbers])
        expected, found = (logits_of(model, ids) for model in (dense, compressed))
        expected, found = (logits[places.to(logits.device)] for logits in (expected, found))  # (places, vocabulary)
        for logits, of in ((expected, "the dense model"), (found, "the compressed model")):
            check_finite(logits, "logits", of)
        for one, other in _slices(expected, found):
            log_p, log_q = log_softmax(one.double(), dim=-1), log_softmax(other.double(), dim=-1)
            kl += float(kl_div(log_q, log_p, reduction="sum", log_target=True))
            agreed += int((one.argmax(dim=-1) == other.argmax(dim=-1)).sum())
        count += len(expected)
    return {"kl": kl / count, "top1_agreement": 100 * agreed / count}


def _batches(texts: Sequence[Tensor], batch_size: int, numbers_per_token: int, what: str) -> Iterator[list[int]]:
    with logging.tqdm(desc=f"Comparing {what}", total=len(texts), unit=" texts") as progress:
        for numbers in batches_of_one_length([len(ids) for ids in texts], batch_size, numbers_per_token):
            yield numbers
            progress.update(len(numbers))


def _slices(one: Tensor, other: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows of two matrices, few enough at a time for copies in double precision."""
    rows = max(1, _MOST_NUMBERS // max(1, one.shape[-1]))
    yield from zip(one.split(rows), other.to(one.device).split(rows), strict=True)
