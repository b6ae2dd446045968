"""Bytes of basis vectors: 16 or 8 bits a number, or 4 by a codebook of pairs, and a scale for each vector.

The function that reads what is written here is that of ``packed_projclust``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .packed_projclust import BASIS_STEPS, read_vectors
from .row_codes import as_words
from .solvers.codebooks import WORDS, nearest_words, train_codebook

_PAIR_STEPS = 24  # steps of a word's numbers in one deviation of the numbers of a vector


@dataclass(frozen=True)
class RoundedVectors:
    """Basis vectors as they are stored.

    Attributes:
        codes: Bytes of the vectors, one after another, uint8, flat.
        scales: Length that each vector's numbers are multiplied by, shape (j,).
        numbers: What the bytes stand for, from -1 to 1, shape (j, d).
    """

    codes: Tensor
    scales: Tensor
    numbers: Tensor


def train_pairs(vectors: Sequence[Tensor], generator: torch.Generator) -> Tensor:
    """The codebook of pairs for basis vectors in 4 bits, int8, shape (256, 2); zeros if there are none."""
    if not vectors:
        return torch.zeros(WORDS, 2, dtype=torch.int8)
    pairs = torch.cat([as_words(part / _deviation(part), 2).flatten(0, 1) for part in vectors])
    return train_codebook(pairs, torch.ones_like(pairs[:, 0]), _PAIR_STEPS, generator)


def round_vectors(vectors: Tensor, bits: int, pairs: Tensor) -> RoundedVectors:
    """Round basis vectors.

    Args:
        vectors: Of any length, shape (j, d).
        bits: Bits of a number: 16, 8 or 4.
        pairs: The codebook that ``train_pairs`` gave, for 4 bits.

    Returns:
        What is stored.
    """
    if bits == 4:
        words = as_words(vectors / _deviation(vectors), 2)
        codes = nearest_words(words.flatten(0, 1), pairs.to(vectors) / _PAIR_STEPS).to(torch.uint8)
        numbers = read_vectors(codes.view(words.shape[:2]), bits, pairs, vectors.dtype)[:, : vectors.shape[1]]
        fitted = (vectors * numbers).sum(dim=1) / numbers.square().sum(dim=1).clamp(min=1e-30)
        return RoundedVectors(codes, fitted.clamp(min=0), numbers)
    scales = vectors.abs().amax(dim=1).clamp(min=1e-30)
    steps = (vectors / scales.unsqueeze(1) * BASIS_STEPS[bits]).round().to(torch.int32)
    of_bytes = torch.stack([(steps >> shift) & 255 for shift in range(0, bits, 8)], dim=2)  # the low byte first
    codes = of_bytes.to(torch.uint8).flatten(1)
    return RoundedVectors(codes.flatten(), scales, read_vectors(codes, bits, None, vectors.dtype))


def _deviation(vectors: Tensor) -> Tensor:
    """Deviation of the numbers of each vector, shape (j, 1)."""
    return vectors.square().mean(dim=1, keepdim=True).sqrt().clamp(min=1e-30)
