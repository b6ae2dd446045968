"""How close a compressed model stays to the dense one, without labels: cosines of sentence embeddings.

Sentences are embedded by the mean of the last hidden states, as sentence-transformers models commonly do.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from transformers.utils import logging

from ..outputs import last_states
from .batches import MAX_LENGTH, batches_of_one_length, check_finite, tokens_of


def bundled_sentences() -> list[str]:
    """Fifty English sentences, written for this project."""
    text = resources.files(__package__).joinpath("sentences.txt").read_text(encoding="utf-8")
    return text.splitlines()


def measure_fidelity(dense: Any, compressed: Any, tokenizer: Any) -> dict[str, Any]:
    """Compare a compressed model with the dense one on the bundled sentences.

    Args:
        dense: The dense model, with or without a head.
        compressed: The same model, compressed.
        tokenizer: Their tokenizer.

    Returns:
        "mean_cosine" of the sentence embeddings, and "texts", which says of what, in JSON types.

    Raises:
        ValueError: If a model gives numbers that are not finite.
    """
    sentences = bundled_sentences()
    models = logging.tqdm((compressed, dense), desc="Comparing with the dense model", unit=" models")
    embeddings = [embed_sentences(model, tokenizer, sentences) for model in models]
    for numbers, of in zip(embeddings, ("the compressed model", "the dense model"), strict=True):
        check_finite(numbers, "numbers in sentence embeddings", of)
    return {
        "mean_cosine": mean_cosine(*embeddings),
        "texts": f"{len(sentences)} English sentences that come with hf_projclust",
    }


def embed_sentences(
    model: Any, tokenizer: Any, sentences: Sequence[str], *, max_length: int = MAX_LENGTH, batch_size: int = 16
) -> Tensor:
    """Embed sentences by the mean of the last hidden states over their tokens, special ones too.

    Args:
        model: A text model, with or without a head; of an encoder-decoder the encoder is taken.
        tokenizer: Its tokenizer.
        sentences: The texts.
        max_length: Tokens of a sentence, at most.
        batch_size: Sentences that are computed at a time, at most; those of one length, so that nothing is padded.

    Returns:
        One embedding a sentence, shape (len(sentences), hidden_size), float32, on the CPU.

    Raises:
        ValueError: If a sentence has no tokens.
    """
    texts = tokens_of(tokenizer, sentences, model, max_length)
    if len(texts) < len(sentences):
        raise ValueError("a sentence has no tokens, and so no embedding; expected sentences that are not empty.")
    width = model.config.get_text_config().hidden_size
    embeddings = torch.empty(len(texts), width)
    with logging.tqdm(desc="Embedding sentences", total=len(texts), unit=" sentences", delay=2) as progress:
        for numbers in batches_of_one_length([len(ids) for ids in texts], batch_size, width):
            states = last_states(model, torch.stack([texts[number] for number in numbers]))
            embeddings[numbers] = states.mean(dim=1).cpu()  # (texts, tokens, width) -> (texts, width)
            progress.update(len(numbers))
    return embeddings


def mean_cosine(embeddings: Tensor, reference: Tensor) -> float:
    """Mean cosine between embeddings and reference embeddings, row by row, both of shape (n, dim)."""
    return float(cosine_similarity(embeddings, reference, dim=-1).mean())
