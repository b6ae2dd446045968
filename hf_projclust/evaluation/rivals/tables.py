"""What a rival makes of a vocabulary table, and what every rival refuses. No rival is here, and no model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RivalTable:
    """A table as it would be read back from what a rival stores.

    Attributes:
        setting: What was asked of the rival, such as "int4, groups of 64".
        rows: The rebuilt rows, shape (n, dim), float32.
        size_bytes: Bytes of all that the rival stores: what is counted stands with each.
    """

    setting: str
    rows: Tensor
    size_bytes: int


def check_table(table: Tensor) -> None:
    """Refuse what is no table of finite floating numbers.

    Args:
        table: Rows, shape (n, dim).

    Raises:
        ValueError: If it is anything else.
    """
    if table.ndim != 2 or not table.numel() or not table.is_floating_point() or not table.isfinite().all():
        raise ValueError(
            f"table of shape {tuple(table.shape)} and {table.dtype}; expected finite floating numbers of shape "
            "(rows, width). Give the weight of an embedding."
        )


def check_per_row(name: str, values: Tensor | None, num_rows: int) -> Tensor:
    """What each row counts, all alike if nothing is given.

    Args:
        name: Of the option.
        values: A number a row, shape (num_rows,), or None.
        num_rows: Rows of the table, n.

    Returns:
        The numbers, shape (num_rows,), float64.

    Raises:
        ValueError: If they are of another shape, not finite, negative, or all 0.
    """
    if values is None:
        return torch.ones(num_rows, dtype=torch.float64)
    if tuple(values.shape) != (num_rows,):
        raise ValueError(
            f"{name} of shape {tuple(values.shape)} for a table of {num_rows:,} rows; expected one number a row. "
            "Count with the tokenizer of this table."
        )
    values = values.to(torch.float64)
    if not values.isfinite().all() or (values < 0).any() or not values.sum() > 0:
        raise ValueError(f"{name} are not finite, negative or all 0; expected numbers of 0 or more, some above it.")
    return values
