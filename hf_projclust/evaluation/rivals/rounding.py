"""Rounding to the nearest of equal steps, in groups along a row: what most libraries call int8, int4 and so on.

Asymmetric: each group has its least number and its step, both in half precision. Neither steps are searched for nor
data are looked at, as GPTQ and AWQ do, which have no meaning for a table that is looked up.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from ...whole_numbers import check_whole
from .tables import RivalTable, check_table

_LEAST_STEP = 1e-7  # about the least that half precision can hold: a group of equal numbers has no step of its own


def round_to_nearest(table: Tensor, *, bits: int, group: int) -> RivalTable:
    """Put each number at the nearest of 2^bits steps between the least and the largest of its group.

    Args:
        table: Rows, shape (n, dim), finite.
        bits: Of each number, 1 to 8.
        group: Numbers of a group along a row; the last group of a row may be shorter.

    Returns:
        The table; its bytes are the codes, packed without gaps, and 2 + 2 for the step and the least number of a group.

    Raises:
        ValueError: If an option is out of its range, or a number is too large for half precision.
    """
    check_table(table)
    check_whole("bits", bits, 1, 8)
    check_whole("group", group, 1)
    num_rows, dim = table.shape
    if table.abs().max() > torch.finfo(torch.float16).max:
        raise ValueError(
            f"the table has numbers up to {float(table.abs().max()):g}; expected such as half precision can hold, in "
            "which the steps are kept. Scale the table down first."
        )
    filled = pad(table.float(), (0, -dim % group), mode="replicate")  # which changes neither ends nor steps
    groups = filled.view(num_rows, -1, group)  # (n, dim) -> (n, groups, group)
    least, largest = groups.amin(dim=2, keepdim=True).half().float(), groups.amax(dim=2, keepdim=True)
    step = ((largest - least) / (2**bits - 1)).half().float().clamp(min=_LEAST_STEP)
    rows = ((groups - least) / step).round().clamp(0, 2**bits - 1) * step + least
    return RivalTable(
        f"int{bits}, groups of {group}",
        rows.view(num_rows, -1)[:, :dim].contiguous(),
        rounded_bytes(num_rows, dim, bits=bits, group=group),
    )


def rounded_bytes(num_rows: int, dim: int, *, bits: int, group: int) -> int:
    """Bytes of a rounded table: as of ``round_to_nearest``, for a table of num_rows x dim."""
    return -(-num_rows * dim * bits // 8) + 4 * num_rows * -(-dim // group)
