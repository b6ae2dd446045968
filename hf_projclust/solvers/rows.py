"""Rows of a table, read in blocks: the one way in which every solver sees its data.

A table is anything that has a shape and a dtype and gives rows by a slice: a tensor, or a file that is larger
than memory. A row with weight w is read as w^(1/p) times itself, so that a weighted problem is a plain one to
everybody who reads it. Where torch.distributed runs, each process reads its share of the blocks, and sums over
all rows are completed by one all-reduce. Blocks are the same however many processes there are.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor, distributed

BLOCK_NUMBERS = 2**23


class Table(Protocol):
    """Rows that are read by slices: a tensor of shape (n, dim), or a file that holds one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of rows and width."""

    @property
    def dtype(self) -> torch.dtype:
        """Floating dtype of the rows."""

    def __getitem__(self, span: slice) -> Tensor:
        """Rows of a span, shape (span, dim)."""


class Rows:
    """A table in blocks.

    Args:
        table: The rows, shape (n, dim), of any floating dtype.
        device: Where blocks are computed on; that of a tensor by default, the CPU for a file.
        block_rows: Rows of a block, at most; about 32 MiB in float32 by default.

    Attributes:
        norms: Norm of each row as it is read, shape (n,), float64, on ``device``.
        dtype: Dtype that blocks are computed in: float64 for a float64 table, else float32.
    """

    def __init__(
        self, table: Table, *, device: torch.device | str | None = None, block_rows: int | None = None
    ) -> None:
        """Read the table once, for the norms of its rows."""
        own_device = table.device if isinstance(table, Tensor) else "cpu"
        self.table, self.device = table, torch.device(own_device if device is None else device)
        self.dtype = torch.float64 if table.dtype == torch.float64 else torch.float32
        self.scales: Tensor | None = None
        num_blocks = math.ceil(self.num_rows / (block_rows or max(1, BLOCK_NUMBERS // self.dim)))
        self.block_rows = math.ceil(self.num_rows / num_blocks)
        self.norms = torch.cat([self.read(span).double().norm(dim=1) for span in self.spans()])

    def weighted(self, weights: Tensor, p: float = 2.0) -> Rows:
        """The same rows with weights.

        Args:
            weights: Weight of each row, shape (n,), float64, never negative.
            p: Power of the distances that are weighted.

        Returns:
            Rows that read w^(1/p) times each row, so that distance^p has the weight; of a scale that ``dtype`` cannot
            hold, which only rows of nearly nothing have, the largest that it can.
        """
        rows = copy.copy(self)
        scales = weights.to(self.device).pow(1 / p).clamp(max=torch.finfo(self.dtype).max)
        rows.scales, rows.norms = scales.to(self.dtype), self.norms * scales
        return rows

    @property
    def num_rows(self) -> int:
        """Number of rows, n."""
        return self.table.shape[0]

    @property
    def dim(self) -> int:
        """Width of a row, d."""
        return self.table.shape[1]

    def spans(self) -> Iterator[slice]:
        """All blocks, in order."""
        for start in range(0, self.num_rows, self.block_rows):
            yield slice(start, min(start + self.block_rows, self.num_rows))

    def own_spans(self) -> Iterator[slice]:
        """Blocks of this process: every one, or every second of two processes, and so on."""
        for number, span in enumerate(self.spans()):
            if number % num_processes() == process_index():
                yield span

    def read(self, span: slice) -> Tensor:
        """Rows of a block, weighted, shape (rows, dim)."""
        block = self.table[span].to(self.device, self.dtype)
        return block if self.scales is None else block * self.scales[span].unsqueeze(1)

    def take(self, indices: Tensor) -> Tensor:
        """Some rows, weighted, in the order given, shape (len(indices), dim)."""
        taken = torch.empty(len(indices), self.dim, dtype=self.dtype, device=self.device)
        indices = indices.to(self.device)
        for span in self.spans():
            is_here = (indices >= span.start) & (indices < span.stop)
            if is_here.any():
                taken[is_here] = self.read(span)[indices[is_here] - span.start]
        return taken


def num_processes() -> int:
    """Processes that share the rows: those of torch.distributed, or one."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def process_index() -> int:
    """Number of this process, from 0."""
    return distributed.get_rank() if num_processes() > 1 else 0


def sum_over_processes(tensor: Tensor) -> Tensor:
    """Add up a tensor over all processes, in place."""
    if num_processes() > 1:
        distributed.all_reduce(tensor)
    return tensor
