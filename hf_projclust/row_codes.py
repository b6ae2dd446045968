"""Bytes of rows from their coordinates, and back: the scale of a row, and the words of its bands.

Coordinates come in deviations: each divided by the length of its vector. Their meaning, and how words are found, is
decided elsewhere; the functions that read what is written here are those of ``packed_projclust``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from .layout_projclust import Band
from .packed_projclust import SCALE_STEPS, SCALE_ZERO, WORD_STEPS, read_scales, read_words
from .solvers.codebooks import nearest_words

_LARGEST = 127


def encode_rows(
    coordinates: Tensor, energies: Tensor, bands: Sequence[Band], codebooks: Mapping[int, Tensor]
) -> Tensor:
    """Find the bytes of rows of a cluster.

    Args:
        coordinates: In deviations, shape (m, rank).
        energies: What the squared error of each coordinate counts, shape (rank,).
        bands: How they are stored.
        codebooks: Words by the numbers in them, int8, shape (256, width).

    Returns:
        Scale and words of each row, shape (m, row bytes), uint8. A row of zeros has the scale 0.
    """
    scales = rough_scales(coordinates, bands)
    spoken = _spoken(_words(coordinates / scale_of(scales), bands, codebooks), bands, codebooks).to(coordinates)
    # The scale that fits these words best, and then the words that fit that scale best.
    fitted = (coordinates * spoken) @ energies / (spoken.square() @ energies).clamp(min=1e-30)
    is_fitted = (scales > 0) & (fitted.unsqueeze(1) > 0)
    scales = torch.where(is_fitted, _scale_bytes(fitted.unsqueeze(1)), scales)
    return torch.cat([scales, _words(coordinates / scale_of(scales), bands, codebooks)], dim=1)


def decode_rows(coded: Tensor, bands: Sequence[Band], codebooks: Mapping[int, Tensor]) -> Tensor:
    """Coordinates in deviations that the bytes of rows stand for, shape (m, rank), float32."""
    return _spoken(coded[:, 1:], bands, codebooks) * read_scales(coded[:, :1])


def rough_scales(coordinates: Tensor, bands: Sequence[Band]) -> Tensor:
    """Scale bytes of rows, shape (m, 1): their deviation, or more where a number of one byte would not fit."""
    deviation = coordinates.square().mean(dim=1).sqrt()
    alone = sum(band.num_coordinates for band in bands if band.per_byte == 1)
    if alone:
        deviation = torch.maximum(deviation, coordinates[:, :alone].abs().amax(dim=1) * WORD_STEPS / _LARGEST)
    return _scale_bytes(deviation.unsqueeze(1))


def scale_of(scale_bytes: Tensor) -> Tensor:
    """The scale that each byte stands for; 1 for that of a row of zeros, which can be divided by."""
    return read_scales(scale_bytes).masked_fill(scale_bytes == 0, 1)


def split_bands(coordinates: Tensor, bands: Sequence[Band]) -> Sequence[Tensor]:
    """Coordinates (m, rank) by band."""
    return coordinates.split([band.num_coordinates for band in bands], dim=1)


def as_words(numbers: Tensor, width: int) -> Tensor:
    """Numbers (m, count) as words (m, words, width); the last word is filled up with zeros."""
    padded = pad(numbers, (0, -numbers.shape[1] % width))
    return padded.view(len(padded), padded.shape[1] // width, width)


def _scale_bytes(scales: Tensor) -> Tensor:
    steps = (scales.clamp(min=1e-30).log2() * SCALE_STEPS).round() + SCALE_ZERO
    return torch.where(scales > 0, steps.clamp(1, 255), 0).to(torch.uint8)


def _words(coordinates: Tensor, bands: Sequence[Band], codebooks: Mapping[int, Tensor]) -> Tensor:
    """Bytes of coordinates in deviations and in units of their row, shape (m, row bytes - 1)."""
    found = []
    for band, part in zip(bands, split_bands(coordinates, bands), strict=True):
        if band.per_byte == 1:
            numbers = (part * WORD_STEPS).round().clamp(-_LARGEST, _LARGEST).to(torch.int8)
            found.append(numbers.view(torch.uint8))
        else:
            words = as_words(part, band.per_byte)
            nearest = nearest_words(words.flatten(0, 1), codebooks[band.per_byte].to(part) / WORD_STEPS)
            found.append(nearest.view(words.shape[:2]).to(torch.uint8))
    return torch.cat(found, dim=1)


def _spoken(words: Tensor, bands: Sequence[Band], codebooks: Mapping[int, Tensor]) -> Tensor:
    """Coordinates that bytes stand for, in units of their row, shape (m, rank)."""
    return read_words(words, bands, codebooks, torch.float32) / WORD_STEPS
