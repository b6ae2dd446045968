"""One table given to the published procedure and to every preset, each under a watch.

Measured is the way from a table to subspaces and the cluster of each row, which is what ``reference_messi`` gives;
storing the factors is not.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from ...compression import compress
from ...factoring import cluster_table
from ...losses import share
from ...options import FactoringOptions, Preset
from ...packing import pack
from ...resources import Resources
from ...searching import clusters_to_try
from ...solvers.ranks import uniform_rank
from ...token_counts import count_tokens
from .reference import reference_messi
from .watch import Watch

SOLVERS: tuple[Preset, ...] = ("svd", "messi", "adaptive", "robust")
_REFERENCE = "reference"


@dataclass(frozen=True)
class BenchmarkRow:
    """What one solver did with one table.

    Attributes:
        table: Name of the table.
        num_rows: Rows of the table, n.
        dim: Width of the table, d.
        solver: A preset, or the reference with its number of restarts.
        num_clusters: Subspaces that it found.
        device: Where it computed.
        seconds: From the table to subspaces and the cluster of each row.
        rounds: Rounds in all, those of starts that lost included.
        peak_bytes: The most memory held beyond the table: of tensors on CUDA; else of the process, looked at every 10
            ms, so that less is seen of what is shorter.
        relative_squared_error: Squared error of the rows over their squared norm, as a model would store them.
        times_faster: Seconds of the reference on this table, in this run, over ``seconds``.
        seconds_to_reference_error: When the error was first no higher than the last one of the reference; None if
            never, for the reference itself, and where rounds lower another norm of the error.
        times_faster_to_reference_error: Seconds of the reference over these.
        curve: Seconds and the least relative squared error so far, after each round, and at the end. Only the end
            where rounds lower another norm of the error.
    """

    table: str
    num_rows: int
    dim: int
    solver: str
    num_clusters: int
    device: str
    seconds: float
    rounds: int
    peak_bytes: int
    relative_squared_error: float
    times_faster: float
    seconds_to_reference_error: float | None
    times_faster_to_reference_error: float | None
    curve: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Case:
    """One table, and what the solvers are asked to make of it.

    Attributes:
        name: Name of the table.
        num_rows: Rows of the table, n.
        dim: Width of the table, d.
        num_clusters: Subspaces of the reference and of the preset messi.
        compression: Share of the table's numbers to save.
        seed: Seed of all random starts.
        restarts: Restarts of the reference.
    """

    name: str
    num_rows: int
    dim: int
    num_clusters: int
    compression: float
    seed: int
    restarts: int

    def options(self, preset: str) -> FactoringOptions:
        """The default options of ``compress``, but all tokens alike and absolute errors."""
        names = {field.name for field in fields(FactoringOptions)}
        defaults = {
            name: parameter.default
            for name, parameter in inspect.signature(compress).parameters.items()
            if name in names
        }
        given: dict[str, Any] = {"preset": preset, "compression": self.compression, "seed": self.seed}
        if preset == "messi":
            given["num_clusters"] = self.num_clusters
        return FactoringOptions(**{**defaults, "token_counts": "uniform", "norm_exponent": 0.0, **given})

    def check(self) -> None:
        """Refuse what a solver would refuse."""
        for preset in SOLVERS:
            clusters_to_try(self.num_rows, self.dim, self.options(preset))


def run_case(case: Case, table: Tensor, number: int, progress: Any) -> list[BenchmarkRow]:
    """Measure the reference and every preset on one table.

    Args:
        case: What they are asked to make of it.
        table: Rows, shape (case.num_rows, case.dim), finite.
        number: Which of the solvers begins, counted round.
        progress: A bar that goes on by one with each solver.

    Returns:
        The reference and then the presets, in the order of ``SOLVERS``.
    """
    solvers = (_REFERENCE, *SOLVERS)
    begin = number % len(solvers)
    measured = {}
    for solver in solvers[begin:] + solvers[:begin]:
        progress.set_postfix_str(f"{solver} on {case.name}, {case.num_rows:,} x {case.dim}")
        watch = Watch(table.device, lambda: progress.update(0))
        measured[solver] = (
            _measure_reference(case, table, watch)
            if solver == _REFERENCE
            else _measure_preset(case.options(solver), table, watch)
        )
        progress.update()
    return [_row(case, measured[solver], measured[_REFERENCE]) for solver in solvers]


@dataclass(frozen=True)
class _Measured:
    """What was measured of one solver; the attributes are those of ``BenchmarkRow``."""

    solver: str
    num_clusters: int
    relative_squared_error: float
    curve: list[tuple[float, float]]
    watch: Watch


def _measure_reference(case: Case, table: Tensor, watch: Watch) -> _Measured:
    rank = uniform_rank(case.num_rows, case.dim, case.num_clusters, case.compression)
    energy = float(table.double().square().sum())
    with watch:
        cost, _, bases = reference_messi(
            table,
            num_clusters=case.num_clusters,
            rank=rank,
            num_restarts=case.restarts,
            seed=case.seed,
            on_round=lambda cost: watch.mark(share(cost, energy)),
        )
    name = f"{_REFERENCE}, {case.restarts} restart{'s' if case.restarts > 1 else ''}"
    return _Measured(name, len(bases), share(cost, energy), watch.curve(), watch)


def _measure_preset(options: FactoringOptions, table: Tensor, watch: Watch) -> _Measured:
    p = options.p or 2.0
    with watch:
        use = count_tokens(options.token_counts, None, len(table))
        found = cluster_table(
            table, options, Resources(device=None, memory_limit=None, checkpoint=None), use, watch.mark
        )
    layout, _, errors = pack(found.rows, found.weights, found.clustering, p)
    curve = watch.curve() if p == 2 else []
    return _Measured(options.preset, layout.num_clusters, errors["relative_squared_error"], curve, watch)


def _row(case: Case, measured: _Measured, reference: _Measured) -> BenchmarkRow:
    """Set what was measured of a solver against the reference."""
    watch, reached = measured.watch, None
    if measured is not reference:
        target = reference.relative_squared_error
        reached = next((seconds for seconds, error in measured.curve if error <= target), None)
    return BenchmarkRow(
        table=case.name,
        num_rows=case.num_rows,
        dim=case.dim,
        solver=measured.solver,
        num_clusters=measured.num_clusters,
        device=str(watch.device),
        seconds=watch.seconds,
        rounds=len(watch.marks),
        peak_bytes=watch.peak_bytes,
        relative_squared_error=measured.relative_squared_error,
        times_faster=reference.watch.seconds / watch.seconds,
        seconds_to_reference_error=reached,
        times_faster_to_reference_error=None if reached is None else reference.watch.seconds / reached,
        curve=(*measured.curve, (watch.seconds, measured.relative_squared_error)),
    )
