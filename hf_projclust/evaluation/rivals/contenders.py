"""What a user might take in place of projective clustering: every rival, and its settings for budgets of bytes.

Each method stands in a file of its own; none of them knows a model. Nothing is computed until a
contender is built.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from .frequency_blocks import reduce_blocks
from .product_quantization import product_quantize, product_quantized_bytes
from .rounding import round_to_nearest
from .tables import RivalTable
from .trimming import kept_within, trim

ROUNDING = "rounding to nearest"
PRODUCT = "product quantisation"
PRODUCT_APART = "product quantisation, lengths apart"
BLOCKS = "GroupReduce-like"
BLOCKS_ROUNDED = "GroupReduce-like, int4"
TRIMMING = "trimming"
TRIMMING_INT8 = "trimming, int8"
TRIMMING_INT4 = "trimming, int4"
RIVALS = (ROUNDING, PRODUCT, PRODUCT_APART, BLOCKS, BLOCKS_ROUNDED, TRIMMING, TRIMMING_INT8, TRIMMING_INT4)
_BITS, _GROUPS = (8, 4, 3, 2), (32, 64, 128)


@dataclass(frozen=True)
class RivalTask:
    """What every rival is given.

    Attributes:
        table: Rows, shape (n, dim), in the dtype that numbers are stored in.
        counts: Use of each token, shape (n,).
        weights: What the squared error of each row counts, shape (n,).
        unknown_id: The token whose row stands in for others; None where there is none.
        seed: Seed of what is random.
    """

    table: Tensor
    counts: Tensor
    weights: Tensor
    unknown_id: int | None
    seed: int


@dataclass(frozen=True)
class Contender:
    """A rival in one setting, not built yet.

    Attributes:
        method: One of ``RIVALS``.
        setting: What tells it from others of its method.
        build: Makes the table; raises ValueError where it cannot.
    """

    method: str
    setting: str
    build: Callable[[], RivalTable]


def contenders(task: RivalTask, budgets: Sequence[int]) -> list[Contender]:
    """Every rival in the settings that a comparison measures, none twice.

    Rounding has a setting for each of its bits and groups. The others have for each budget the largest that fits.

    Args:
        task: What they are given.
        budgets: Bytes.

    Returns:
        The contenders, in the order of ``RIVALS``; of budgets without room for any, those that fail when they are
        built, and say why.
    """
    found: dict[tuple[str, str], Contender] = {}
    for contender in _contenders(task, budgets):
        found.setdefault((contender.method, contender.setting), contender)
    return list(found.values())


def _contenders(task: RivalTask, budgets: Sequence[int]) -> Iterator[Contender]:
    (num_rows, dim), item_bytes = task.table.shape, task.table.dtype.itemsize
    for bits in _BITS:
        for group in dict.fromkeys(min(group, dim) for group in _GROUPS):
            build = partial(round_to_nearest, task.table, bits=bits, group=group)
            yield Contender(ROUNDING, f"int{bits}, groups of {group}", build)
    for method, apart in ((PRODUCT, False), (PRODUCT_APART, True)):
        for budget in budgets:
            sizes = (
                product_quantized_bytes(num_rows, dim, width, item_bytes, apart=apart) for width in range(1, dim + 1)
            )
            per_byte = next((width for width, size in enumerate(sizes, 1) if size <= budget), None)
            if per_byte is None:
                yield Contender(method, f"{budget:,} bytes", partial(_refuse, method, budget))
                continue
            build = partial(product_quantize, task.table, per_byte=per_byte, apart=apart, seed=task.seed)
            yield Contender(method, f"{per_byte} a byte", build)
    for method, bits_or_none in ((BLOCKS, None), (BLOCKS_ROUNDED, 4)):
        for budget in budgets:
            build = partial(
                reduce_blocks,
                task.table,
                task.counts,
                size_bytes=budget,
                weights=task.weights,
                bits=bits_or_none,
            )
            yield Contender(method, f"{budget:,} bytes", build)
    for method, bits_or_none in ((TRIMMING, None), (TRIMMING_INT8, 8), (TRIMMING_INT4, 4)):
        for budget in budgets:
            num_kept = kept_within(budget, num_rows, dim, item_bytes, bits=bits_or_none)
            if not num_kept:
                yield Contender(method, f"{budget:,} bytes", partial(_refuse, method, budget))
                continue
            build = partial(
                trim,
                task.table,
                task.counts,
                num_kept=num_kept,
                unknown_id=task.unknown_id,
                bits=bits_or_none,
            )
            yield Contender(method, f"{num_kept:,} rows", build)


def _refuse(method: str, budget: int) -> RivalTable:
    raise ValueError(f"{method} has no setting of {budget:,} bytes or fewer for this table; expected more. Give more.")
