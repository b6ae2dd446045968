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


def bundled_sentences() -> list[str]:
    """Fifty English sentences, written for this project."""
    text = resources.files(__package__).joinpath("sentences.txt").read_text(encoding="utf-8")
    return text.splitlines()


@torch.no_grad()
def embed_sentences(model: Any, tokenizer: Any, sentences: Sequence[str]) -> Tensor:
    """Embed sentences by the mean of the last hidden states over their tokens.

    Args:
        model: An encoder without a head, such as ``BertModel``.
        tokenizer: Its tokenizer.
        sentences: The texts.

    Returns:
        One embedding a sentence, shape (len(sentences), hidden_size).
    """
    batch = tokenizer(list(sentences), padding=True, truncation=True, return_tensors="pt").to(model.device)
    hidden = model(**batch).last_hidden_state  # (sentences, tokens, hidden)
    mask = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)  # (sentences, tokens, 1)
    return (hidden * mask).sum(dim=1) / mask.sum(dim=1)


def mean_cosine(embeddings: Tensor, reference: Tensor) -> float:
    """Mean cosine between embeddings and reference embeddings, row by row, both of shape (n, dim)."""
    return float(cosine_similarity(embeddings, reference, dim=-1).mean())
