"""Bytes of basis vectors: 16 or 8 bits a number, or 4 by a codebook of pairs, and a scale for each vector.

``packed_projclust`` reads what is written here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .row_codes import as_words
from .solvers.codebooks import WORDS, nearest_words, train_codebook

_PAIR_STEPS = 24  # steps of a word's numbers in one deviation of the numbers of a vector
_LARGEST = 127


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
        book = pairs.to(vectors)
        codes = nearest_words(as_words(vectors / _deviation(vectors), 2).flatten(0, 1), book / _PAIR_STEPS)
        numbers = book[codes].view(len(vectors), -1)[:, : vectors.shape[1]] / _LARGEST
        fitted = (vectors * numbers).sum(dim=1) / numbers.square().sum(dim=1).clamp(min=1e-30)
        return RoundedVectors(codes.to(torch.uint8), fitted.clamp(min=0), numbers)
    largest = 2 ** (bits - 1) - 1
    scales = vectors.abs().amax(dim=1).clamp(min=1e-30)
    steps = (vectors / scales.unsqueeze(1) * largest).round().to(torch.int32)
    of_bytes = torch.stack([(steps >> shift) & 255 for shift in range(0, bits, 8)], dim=2)  # the low byte first
    return RoundedVectors(of_bytes.to(torch.uint8).flatten(), scales, steps.to(vectors) / largest)


def _deviation(vectors: Tensor) -> Tensor:
    """Deviation of the numbers of each vector, shape (j, 1)."""
    return vectors.square().mean(dim=1, keepdim=True).sqrt().clamp(min=1e-30)
