"""Low rank in blocks of equally frequent tokens: like GroupReduce (Chen et al. 2018, arXiv 1806.06950).

Rows are sorted by their counts into blocks of equal size, and each block gets a weighted SVD. Not of the paper: ranks
are the best under one budget of bytes (each next rank goes where it lowers the weighted error most for a byte), and
coefficients may be rounded. Left out of it: the refinement, in which rows move to another block, and fine-tuning.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...whole_numbers import check_whole
from .rounding import round_to_nearest, rounded_bytes
from .tables import RivalTable, check_per_row, check_table

_GROUP = 32  # coefficients that share a step where they are rounded
_ORDER_BYTES = 4  # a token: where its row stands among the blocks


def reduce_blocks(
    table: Tensor,
    counts: Tensor | None,
    *,
    size_bytes: int,
    weights: Tensor | None = None,
    num_blocks: int = 5,
    bits: int | None = None,
) -> RivalTable:
    """Factor blocks of equally frequent tokens, each with a rank of its own, within a budget of bytes.

    Args:
        table: Rows, shape (n, dim).
        counts: Use of each token, shape (n,), by which rows are sorted; of equal ones, and without any, by their ids.
        size_bytes: The most bytes that may be stored.
        weights: What the squared error of each row counts, shape (n,); by default the counts.
        num_blocks: Blocks, 1 to n.
        bits: Of a coefficient, 1 to 8, rounded in groups of 32, beside bases in half precision; None for both in the
            table's dtype.

    Returns:
        The table; its bytes are coefficients (with steps and least numbers of groups), bases, and an int32 a token.

    Raises:
        ValueError: If an option is out of its range, or not one rank fits.
    """
    check_table(table)
    num_rows, dim = table.shape
    check_whole("size_bytes", size_bytes, 1)
    check_whole("num_blocks", num_blocks, 1, num_rows)
    if bits is not None:
        check_whole("bits", bits, 1, 8)
    counts = check_per_row("counts", counts, num_rows)
    weights = counts if weights is None else check_per_row("weights", weights, num_rows)
    blocks = counts.argsort(descending=True, stable=True).tensor_split(num_blocks)
    spectra = [_spectrum(table[block], weights[block]) for block in blocks]
    shapes = [(len(block), dim) for block in blocks]
    ranks, used = _ranks([energies for energies, _ in spectra], shapes, size_bytes, table.dtype.itemsize, bits)
    rows = torch.zeros(num_rows, dim)
    for block, (_, axes), rank in zip(blocks, spectra, ranks, strict=True):
        if not rank:
            continue
        basis = axes[:, :rank].to(table.dtype if bits is None else torch.float16).float()  # (dim, rank)
        coefficients = (table[block].double() @ axes[:, :rank]).to(table.dtype).float()
        if bits is not None:
            coefficients = round_to_nearest(coefficients, bits=bits, group=_GROUP).rows
        rows[block] = coefficients @ basis.T  # (m, rank) @ (rank, dim) -> (m, dim)
    return RivalTable(f"{num_blocks} blocks, ranks {', '.join(map(str, ranks))}", rows, used)


def _spectrum(rows: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted energies of rows (m, dim) along principal axes, falling, and the axes, shape (dim, min(m, dim))."""
    rows = rows.double()
    energies, axes = torch.linalg.eigh(rows.T @ (weights.unsqueeze(1) * rows))  # ascending
    most = min(rows.shape)
    return energies.flip(0)[:most].clamp(min=0), axes.flip(1)[:, :most]


def _ranks(
    energies: list[Tensor], shapes: list[tuple[int, int]], size_bytes: int, item_bytes: int, bits: int | None
) -> tuple[list[int], int]:
    """A rank for each block, and the bytes that they take: the next one where it lowers the error most for a byte."""
    gains = []
    for block, ((num_rows, dim), falling) in enumerate(zip(shapes, energies, strict=True)):
        price = _block_bytes(num_rows, dim, _GROUP, item_bytes, bits) / _GROUP  # of a rank, its share of steps included
        gains += [(-float(energy) / price, rank, block) for rank, energy in enumerate(falling.tolist(), 1)]
    ranks, is_full = [0] * len(shapes), [False] * len(shapes)
    used = _ORDER_BYTES * sum(num_rows for num_rows, _ in shapes)
    for _, rank, block in sorted(gains):
        before, after = (_block_bytes(*shapes[block], number, item_bytes, bits) for number in (rank - 1, rank))
        is_full[block] = is_full[block] or used + after - before > size_bytes
        if not is_full[block]:
            ranks[block], used = rank, used + after - before
    if not any(ranks):
        raise ValueError(
            f"size_bytes={size_bytes:,} leaves no room for one coordinate in any of {len(shapes)} blocks, beside "
            f"{used:,} bytes for the order of the rows; expected more. Give more bytes."
        )
    return ranks, used


def _block_bytes(num_rows: int, dim: int, rank: int, item_bytes: int, bits: int | None) -> int:
    """Bytes of the factors of a block."""
    if bits is None:
        return item_bytes * rank * (num_rows + dim)
    return rounded_bytes(num_rows, rank, bits=bits, group=_GROUP) + 2 * rank * dim
