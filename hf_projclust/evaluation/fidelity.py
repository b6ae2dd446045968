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
    """
    sentences = bundled_sentences()
    models = logging.tqdm((compressed, dense), desc="Comparing with the dense model", unit=" models")
    embeddings = [embed_sentences(model, tokenizer, sentences) for model in models]
    return {
        "mean_cosine": mean_cosine(*embeddings),
        "texts": f"{len(sentences)} English sentences that come with hf_projclust",
    }


@torch.no_grad()
def embed_sentences(model: Any, tokenizer: Any, sentences: Sequence[str]) -> Tensor:
    """Embed sentences by the mean of the last hidden states over their tokens.

    Each sentence is a batch of its own, so that no model needs a padding token.

    Args:
        model: A text model, with or without a head; of an encoder-decoder the encoder is taken.
        tokenizer: Its tokenizer.
        sentences: The texts.

    Returns:
        One embedding a sentence, shape (len(sentences), hidden_size), float32.
    """
    body = model.get_encoder() if model.config.is_encoder_decoder else model.base_model
    embeddings = []
    for sentence in sentences:
        inputs = tokenizer(sentence, truncation=True, return_tensors="pt").to(model.device)
        hidden = body(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state
        embeddings.append(hidden.float().mean(dim=1))  # (1, tokens, hidden) -> (1, hidden)
    return torch.cat(embeddings)


def mean_cosine(embeddings: Tensor, reference: Tensor) -> float:
    """Mean cosine between embeddings and reference embeddings, row by row, both of shape (n, dim)."""
    return float(cosine_similarity(embeddings, reference, dim=-1).mean())
