"""Vocabulary trimming: the rows of the most used tokens are kept, and all others take the row of the unknown token."""

from __future__ import annotations

import torch
from torch import Tensor

from ...whole_numbers import check_whole
from .rounding import round_to_nearest, rounded_bytes
from .tables import RivalTable, check_per_row, check_table

_GROUP = 64  # numbers that share a step where kept rows are rounded
_MAP_BYTES = 4  # a token: which row it takes


def trim(
    table: Tensor, counts: Tensor | None, *, num_kept: int, unknown_id: int | None = None, bits: int | None = None
) -> RivalTable:
    """Keep the rows of the most used tokens.

    Args:
        table: Rows, shape (n, dim).
        counts: Use of each token, shape (n,); of equal ones, and without any, lower ids are kept first.
        num_kept: Rows that are kept, 1 to n, that of the unknown token always among them.
        unknown_id: Token whose row all others take; None where the tokenizer has none, and they get zeros.
        bits: Of the numbers of kept rows, 1 to 8, rounded in groups of 64; None for the table's dtype.

    Returns:
        The table; its bytes are the kept rows (with steps and least numbers of groups) and an int32 a token.

    Raises:
        ValueError: If an option is out of its range.
    """
    check_table(table)
    num_rows, dim = table.shape
    check_whole("num_kept", num_kept, 1, num_rows)
    if unknown_id is not None:
        check_whole("unknown_id", unknown_id, 0, num_rows - 1)
    if bits is not None:
        check_whole("bits", bits, 1, 8)
    order = check_per_row("counts", counts, num_rows).argsort(descending=True, stable=True)
    kept = order[:num_kept]
    rows = torch.zeros(num_rows, dim)
    if unknown_id is not None:
        if unknown_id not in kept.tolist():
            kept[-1] = unknown_id
        rows += _stored(table[unknown_id : unknown_id + 1], bits)
    rows[kept] = _stored(table[kept], bits)
    default = "zeros" if unknown_id is None else "the unknown token's row"
    size_bytes = num_kept * _row_bytes(dim, table.dtype.itemsize, bits) + _MAP_BYTES * num_rows
    return RivalTable(f"{num_kept:,} rows, others {default}", rows, size_bytes)


def kept_within(size_bytes: int, num_rows: int, dim: int, item_bytes: int, *, bits: int | None = None) -> int:
    """How many rows can be kept in so many bytes: as counted by ``trim``; none if there is no room for one."""
    room = size_bytes - _MAP_BYTES * num_rows
    return min(num_rows, max(0, room // _row_bytes(dim, item_bytes, bits)))


def _row_bytes(dim: int, item_bytes: int, bits: int | None) -> int:
    """Bytes of a kept row; rounded rows begin at a byte."""
    return dim * item_bytes if bits is None else rounded_bytes(1, dim, bits=bits, group=_GROUP)


def _stored(rows: Tensor, bits: int | None) -> Tensor:
    return rows.float() if bits is None else round_to_nearest(rows, bits=bits, group=_GROUP).rows
