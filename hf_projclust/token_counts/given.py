"""Counts that are given as numbers: read and checked."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def given_numbers(counts: Any) -> Tensor:
    """Counts as a tensor of their own.

    Args:
        counts: A tensor, an array, or a sequence of numbers, in one dimension.

    Returns:
        The counts, shape (len(counts),), float64, on the CPU.

    Raises:
        ValueError: If they are no numbers, not in one dimension, not finite, negative, or all zero.
    """
    numbers = _as_tensor(counts)
    _check_numbers(numbers)
    return numbers


def _as_tensor(counts: Any) -> Tensor:
    try:
        if isinstance(counts, Tensor):
            return counts.detach().to("cpu", torch.float64)
        return torch.tensor(counts, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"token counts are a {type(counts).__name__}; expected a number a token, or one or more strings, "
            'such as "words:en" or the name of a text file.'
        ) from error


def _check_numbers(numbers: Tensor) -> None:
    if numbers.dim() != 1:
        raise ValueError(f"token counts of shape {tuple(numbers.shape)}; expected one dimension. Flatten them first.")
    if not numbers.numel():
        raise ValueError(
            'no token counts were given; expected a number a token, or one or more strings, such as "words:en".'
        )
    for is_bad, what, way_out in (
        (~numbers.isfinite(), "NaN or infinity", "Replace what is not known by 0"),
        (numbers < 0, "a negative number", "Give counts or shares themselves, not their logarithms"),
        (numbers.sum() == 0, "0 for every token", 'Give the counts, or "uniform" for no difference'),
    ):
        if is_bad.any():
            place = f" at token id {int(is_bad.nonzero()[0])}" if is_bad.dim() else ""
            raise ValueError(
                f"token counts have {what}{place}; expected finite numbers, 0 or more, and some above 0. {way_out}."
            )
