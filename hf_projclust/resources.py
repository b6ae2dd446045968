"""What a run may use: the device, the memory and how many rows at once that allows, the folder of its checkpoint.

What each means stands with ``hf_projclust.compress``. How to factor a table is in ``options``.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate.utils import convert_file_size_to_int

from .solvers.rows import BLOCK_NUMBERS

LEAST_BLOCK_ROWS = 256
# Norms, scales, distances, use of tokens, and assignments of two fits of each of three runs.
_BYTES_A_ROW = 128
# Sums in float64 and eigenvectors in float32, of three runs that race, of their best fits, and of a change.
_BYTES_A_GRAM_ENTRY = 80
# A block as it is stored, computed, weighted, moved from and to, and its products with a basis.
_BYTES_A_BLOCK_ENTRY = 48


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What a run may use; none of it changes the result beyond rounding.

    Raises:
        ValueError: If there is no such device, or the limit on memory is not a size.
    """

    device: str | torch.device | None
    memory_limit: int | str | None
    checkpoint: str | Path | None

    def __post_init__(self) -> None:
        """Refuse what no machine has, before a model is loaded."""
        if self.device is not None:
            try:
                float(torch.ones(1, device=self.device).sum())
            except (RuntimeError, AssertionError, TypeError) as error:
                raise ValueError(
                    f"device={self.device!r} cannot be used here ({str(error).splitlines()[0]}); expected one that "
                    "torch finds, such as 'cpu' or 'cuda'. Leave it out for the device of the model."
                ) from error
        if self.memory_limit is not None:
            object.__setattr__(self, "memory_limit", number_of_bytes("memory_limit", self.memory_limit))

    def block_rows(self, num_rows: int, dim: int, num_clusters: int) -> int | None:
        """Rows of a block that keep a clustering within the limit on memory.

        Args:
            num_rows: Rows of the table, n.
            dim: Width of the table, d.
            num_clusters: Number of clusters, k, at most.

        Returns:
            The number of rows, or None if there is no limit.

        Raises:
            ValueError: If the limit is too small for a block of ``LEAST_BLOCK_ROWS``.
        """
        if self.memory_limit is None:
            return None
        fixed = num_rows * _BYTES_A_ROW + num_clusters * dim**2 * _BYTES_A_GRAM_ENTRY
        a_row = dim * _BYTES_A_BLOCK_ENTRY
        least = fixed + min(LEAST_BLOCK_ROWS, num_rows) * a_row
        if int(self.memory_limit) < least:
            raise ValueError(
                f"memory_limit={self.memory_limit:,} bytes is too small for one block of rows of a table of "
                f"{num_rows:,} x {dim}, with {num_clusters} clusters; expected at least {least:,}, about "
                f"{math.ceil(least / 1e6)}MB. Raise the limit, or use fewer clusters."
            )
        return min((int(self.memory_limit) - fixed) // a_row, max(1, BLOCK_NUMBERS // dim))


def number_of_bytes(name: str, size: int | str) -> int:
    """Read a size.

    Args:
        name: What it is of, for the error.
        size: Bytes, or a size such as "1GB" (of 1,000,000,000) or "500MiB".

    Returns:
        Bytes, 1 or more.

    Raises:
        ValueError: If it is no size.
    """
    size_bytes = 0
    if isinstance(size, int | str) and not isinstance(size, bool):
        written = str(size).upper()  # a small b would mean bits
        with contextlib.suppress(ValueError):
            size_bytes = int(written) if written.isdecimal() else convert_file_size_to_int(written)
    if size_bytes < 1:
        raise ValueError(f"{name}={size!r}; expected bytes, or a size such as '1GB' or '500MiB'.")
    return size_bytes
