"""Cells of the protocol summed up: a row for each method, rate and stage. Nothing is written or drawn here.

A mean over tasks is of one seed first, and only where that seed has the cell of every task; a row has the mean of
those. So no two means are over different sets of tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from .plan import DENSE, Cell, Stage


@dataclass(frozen=True)
class Spread:
    """A figure over seeds.

    Attributes:
        mean: Its mean.
        deviation: Its standard deviation, of a sample; None of one seed.
        num_seeds: Seeds that have it.
    """

    mean: float
    deviation: float | None
    num_seeds: int


@dataclass(frozen=True)
class SummaryRow:
    """One row; a figure is None where cells are missing.

    Attributes:
        stage: "before" or "after" the extra epochs.
        method: Name of the method, or "dense".
        rate: Share of the table that is saved; None of the dense model.
        tasks: Score of each task, in percent.
        score: Mean over all tasks, in percent.
        drop: Mean over all tasks of what is lost against the dense model of the same seed at the same stage, in points.
        error: Mean over all tasks of the relative squared error of the table after compression.
        table_bytes: Mean over all tasks of the bytes of the table.
    """

    stage: Stage
    method: str
    rate: float | None
    tasks: dict[str, Spread | None]
    score: Spread | None
    drop: Spread | None
    error: Spread | None
    table_bytes: Spread | None


def summarise(cells: Mapping[Cell, Mapping[str, Any]], plan: Sequence[Cell]) -> list[SummaryRow]:
    """Sum up cells.

    Args:
        cells: Those that are made; others than the plan's are left out.
        plan: All that are to be made.

    Returns:
        A row for each stage, method and rate of the plan, in its order.
    """
    tasks = sorted({cell.task for cell in plan})
    seeds = list(dict.fromkeys(cell.seed for cell in plan))
    planned = set(plan)

    def row(stage: Stage, method: str, rate: float | None) -> SummaryRow:
        def found(task: str, seed: int) -> Mapping[str, Any] | None:
            cell = Cell(task, seed, method, rate, stage)
            return cells.get(cell) if cell in planned else None

        def score(task: str, seed: int) -> float | None:
            record = found(task, seed)
            return None if record is None else float(record["metrics"]["score"])

        def drop(task: str, seed: int) -> float | None:
            dense, own = cells.get(Cell(task, seed, DENSE, None, stage)), score(task, seed)
            return None if dense is None or own is None else float(dense["metrics"]["score"]) - own

        def fact(name: str) -> Callable[[str, int], float | None]:
            return lambda task, seed: (found(task, seed) or {}).get(name)

        def over_tasks(value: Callable[[str, int], float | None]) -> Spread | None:
            of_seeds = [[value(task, seed) for task in tasks] for seed in seeds]
            return _spread([None if None in values else fmean(_known(values)) for values in of_seeds])

        return SummaryRow(
            stage,
            method,
            rate,
            {task: _spread([score(task, seed) for seed in seeds]) for task in tasks},
            over_tasks(score),
            over_tasks(drop),
            over_tasks(fact("relative_squared_error")),
            over_tasks(fact("table_bytes")),
        )

    return [row(*kind) for kind in dict.fromkeys((cell.stage, cell.method, cell.rate) for cell in plan)]


def missing_cells(cells: Mapping[Cell, Mapping[str, Any]], plan: Sequence[Cell]) -> list[Cell]:
    """Those of the plan that are not made, in its order."""
    return [cell for cell in plan if cell not in cells]


def _spread(values: Sequence[float | None]) -> Spread | None:
    known = _known(values)
    if not known:
        return None
    return Spread(fmean(known), stdev(known) if len(known) > 1 else None, len(known))


def _known(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]
