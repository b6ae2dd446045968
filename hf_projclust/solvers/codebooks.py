"""Codebooks of product quantisation: 256 words of a few numbers each, found by weighted k-means, and the nearest word.

Words are whole numbers of steps, as they are stored. What is quantised, and how it is scaled before, is decided
elsewhere.
"""

from __future__ import annotations

import torch
from torch import Tensor

WORDS = 256
_ROUNDS = 15
_MOST_SAMPLES = 2**16
_BLOCK = 2**14
_LARGEST = 127


def train_codebook(samples: Tensor, weights: Tensor, steps: float, generator: torch.Generator) -> Tensor:
    """Find words for samples by Lloyd's rounds of weighted k-means.

    Args:
        samples: Shape (n, width); at most 65,536 of them are looked at.
        weights: What the squared error of each counts, shape (n,).
        steps: Steps of a word's numbers in one unit of the samples.
        generator: Source of the random start, on the CPU.

    Returns:
        Words, shape (256, width), int8. Where samples are few, some are zeros.
    """
    if len(samples) > _MOST_SAMPLES:
        chosen = torch.randperm(len(samples), generator=generator)[:_MOST_SAMPLES].to(samples.device)
        samples, weights = samples[chosen], weights[chosen]
    words = samples.new_zeros(WORDS, samples.shape[1])
    if len(samples):
        start = torch.randperm(len(samples), generator=generator)[:WORDS].to(samples.device)
        words[: len(start)] = samples[start]
    for _ in range(_ROUNDS if len(samples) else 0):
        nearest = nearest_words(samples, words)
        mass = weights.new_zeros(WORDS).index_add_(0, nearest, weights)
        sums = torch.zeros_like(words).index_add_(0, nearest, samples * weights.unsqueeze(1))
        words = torch.where(mass.unsqueeze(1) > 0, sums / mass.clamp(min=1e-30).unsqueeze(1), words)
        unused = (mass == 0).nonzero().flatten()
        again = torch.randint(len(samples), (len(unused),), generator=generator).to(samples.device)
        words[unused] = samples[again]
    return (words * steps).round().clamp(-_LARGEST, _LARGEST).to(torch.int8)


def nearest_words(samples: Tensor, words: Tensor) -> Tensor:
    """The nearest word of each sample.

    Args:
        samples: Shape (n, width).
        words: Shape (256, width), in the units of the samples.

    Returns:
        Numbers of words, shape (n,), int64.
    """
    half_norms = words.square().sum(dim=1) / 2
    blocks = [(block @ words.T - half_norms).argmax(dim=1) for block in samples.split(_BLOCK)]
    return torch.cat(blocks) if blocks else torch.zeros(0, dtype=torch.int64, device=samples.device)
