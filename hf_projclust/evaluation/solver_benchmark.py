"""The solvers against the published procedure: time, memory and error on a real table and on synthetic ones.

Each solver gets the default options of ``hf_projclust.compress``, with all tokens alike and absolute errors, so that
errors compare. Measured is the way from a table to subspaces and the cluster of each row, which is what
``reference_messi`` gives; storing the factors is not. Nothing here says what an error costs a model.
"""

from __future__ import annotations

import contextlib
import ctypes
import inspect
import math
import os
import platform
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from itertools import accumulate
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor
from transformers.utils import logging

from ..compression import compress
from ..demo import packaged_minilm
from ..factoring import cluster_table, clusters_to_try
from ..loading import load_model
from ..options import FactoringOptions, Preset
from ..packing import pack, share
from ..resources import Resources
from ..solvers.ranks import uniform_rank
from ..token_counts import count_tokens
from .reference import reference_messi

SIZES = ((4_000, 64, 4), (8_000, 128, 5), (16_000, 256, 6))
SOLVERS: tuple[Preset, ...] = ("svd", "messi", "adaptive", "robust")
_REFERENCE = "reference"
_SAMPLE_SECONDS = 0.01


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


def benchmark_solvers(
    *,
    table: Tensor | None = None,
    compression: float = 0.4,
    num_clusters: int = 5,
    sizes: Sequence[tuple[int, int, int]] = SIZES,
    seed: int = 0,
    device: str | None = None,
    reference_restarts: int = 10,
) -> list[BenchmarkRow]:
    """Run the reference and every preset on one real table, then on synthetic ones, with a progress bar.

    Each solver is called once on a tiny table first. Which one begins changes from table to table.

    Args:
        table: Rows, shape (n, dim), finite; by default those of the packaged all-MiniLM-L6-v2.
        compression: Share of each table's numbers to save.
        num_clusters: Subspaces of the reference and of the preset messi on this table.
        sizes: Rows, width and planted subspaces (n, d, k) of each synthetic table, see ``synthetic_table``. The
            reference has one restart there, and both it and the preset messi have k subspaces.
        seed: Seed of all random starts and of the synthetic tables.
        device: Where to compute; by default where ``table`` is.
        reference_restarts: Restarts of the reference on the first table. The paper's authors use 10.

    Returns:
        For each table the reference and then the presets, in the order of ``SOLVERS``.

    Raises:
        ValueError: If an option is out of its range, or a table is too small for it.
        ModuleNotFoundError: If no table is given and the extra ``demo`` is not installed.
    """
    # Both refuse what no table could make right, before a model is loaded.
    Resources(device=device, memory_limit=None, checkpoint=None)
    _Case("", 0, 0, num_clusters, compression, seed, reference_restarts).options("messi")
    if isinstance(reference_restarts, bool) or not isinstance(reference_restarts, int) or reference_restarts < 1:
        raise ValueError(f"reference_restarts={reference_restarts!r}; expected a whole number, 1 or more.")
    for n, d, k in sizes:
        if d < 2 or not 1 <= k <= n:
            raise ValueError(
                f"sizes has n={n}, d={d}, k={k}; expected rows, a width of 2 or more, and 1 to {n} subspaces. "
                "Use fewer subspaces, or more rows."
            )
    cases = [_Case(f"synthetic, {k} subspaces", n, d, k, compression, seed, 1) for n, d, k in sizes]
    for case in cases:
        case.check()
    given = _minilm_table() if table is None else table.detach()
    if given.ndim != 2 or not given.is_floating_point() or not given.isfinite().all():
        raise ValueError(
            f"table of shape {tuple(given.shape)} and {given.dtype}; expected finite floating numbers of shape "
            "(rows, width). Give the weight of an embedding."
        )
    given = given.to(given.device if device is None else device)
    name = "all-MiniLM-L6-v2" if table is None else "given table"
    num_rows, dim = given.shape
    first = _Case(name, num_rows, dim, num_clusters, compression, seed, reference_restarts)
    first.check()
    tiny = _Case("warm-up", 96, 8, 2, 0.2, seed, 1)
    rows = []
    with logging.tqdm(desc="Benchmark", total=(2 + len(cases)) * (1 + len(SOLVERS)), miniters=0) as progress:
        for number, case in enumerate([tiny, first, *cases]):
            if case is first:
                dense = given
            else:
                dense = synthetic_table(case.num_rows, case.dim, case.num_clusters, seed=seed).to(given.device)
            found = _run_case(case, dense, number, progress)
            rows += found if case is not tiny else []
    return rows


def synthetic_table(num_rows: int, dim: int, num_clusters: int, *, seed: int = 0) -> Tensor:
    """A table like a vocabulary's: a union of subspaces with decaying spectra, noise, and norms that vary.

    Each subspace has half the table's width and is drawn at random. The coordinates of a row in its subspace are
    normal, with a variance that falls as 1 / (1 + number of the coordinate); normal noise in all directions adds a
    fifth of their energy. Norms are then log-normal with a spread of 0.27, that of all-MiniLM-L6-v2's table.

    Args:
        num_rows: Rows, n.
        dim: Width, d, 2 or more.
        num_clusters: Subspaces, k, each with about n / k of the rows.
        seed: Equal seeds give equal tables.

    Returns:
        Rows in random order, shape (n, dim), float32.
    """
    generator = torch.Generator().manual_seed(seed)
    rank = dim // 2
    scales = torch.arange(1, rank + 1).rsqrt()  # (rank,)
    assignment = torch.randint(num_clusters, (num_rows,), generator=generator)
    rows = torch.randn(num_rows, dim, generator=generator) * (0.2 * scales.square().sum() / dim).sqrt()
    for number in range(num_clusters):
        basis = torch.linalg.qr(torch.randn(dim, rank, generator=generator))[0].T  # (rank, dim)
        is_member = assignment == number
        rows[is_member] += torch.randn(int(is_member.sum()), rank, generator=generator) * scales @ basis
    norms = (0.27 * torch.randn(num_rows, 1, generator=generator)).exp()
    return rows * norms / rows.norm(dim=1, keepdim=True)


def plot_benchmark(rows: Sequence[BenchmarkRow], path: str | Path) -> None:
    """Draw the relative squared error against seconds, a panel for each table and a line for each solver.

    Args:
        rows: What ``benchmark_solvers`` returned.
        path: Image file to write; its ending chooses the format.

    Raises:
        ValueError: If there are no rows.
        ModuleNotFoundError: If matplotlib is missing.
    """
    if not rows:
        raise ValueError("no rows to draw; expected those of benchmark_solvers().")
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the package matplotlib is missing; the plot needs the extra 'demo'. "
            "Install it: pip install 'hf-projclust[demo]'."
        ) from error

    tables = list(dict.fromkeys((row.table, row.num_rows, row.dim) for row in rows))
    columns = min(3, len(tables))
    lines = -(-len(tables) // columns)
    figure = Figure(figsize=(max(7.0, 4.6 * columns), 3.8 * lines + 0.6), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).flatten()
    for panel in panels[len(tables) :]:
        panel.remove()
    for (name, num_rows, dim), panel in zip(tables, panels, strict=False):
        for row in rows:
            if (row.table, row.num_rows, row.dim) != (name, num_rows, dim):
                continue
            is_reference = row.solver not in SOLVERS
            color = "black" if is_reference else f"C{SOLVERS.index(row.solver)}"
            seconds, errors = zip(*row.curve, strict=True)
            style = "--" if is_reference else "-"
            panel.step(seconds, errors, style, where="post", color=color, linewidth=1.2, label=row.solver)
            panel.plot(seconds[-1], errors[-1], "o", color=color, markersize=4)
        panel.set(xlabel="seconds", ylabel="relative squared error", xscale="log")
        panel.set_title(f"{name}, {num_rows:,} x {dim}", fontsize="medium")
        panel.legend(fontsize="small")
    figure.suptitle(f"Least error so far (dots: the end)\n{describe_machine(rows[0].device)}", fontsize="small")
    figure.savefig(path, dpi=150)


def describe_machine(device: str | None = None) -> str:
    """Processors, device and versions, in one line, for the caption of a benchmark.

    Args:
        device: Where was computed; the CPU by default.

    Returns:
        Such as "8 CPUs, 4 threads, device cpu, PyTorch 2.13.0, Python 3.11.7".
    """
    where = torch.device(device or "cpu")
    name = f"{where} ({torch.cuda.get_device_name(where)})" if where.type == "cuda" else str(where)
    return (
        f"{os.cpu_count()} CPUs, {torch.get_num_threads()} threads, device {name}, PyTorch {torch.__version__}, "
        f"Python {platform.python_version()}"
    )


@dataclass(frozen=True)
class _Case:
    """One table, and what the solvers are asked to make of it."""

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


def _minilm_table() -> Tensor:
    weight: Any = load_model(packaged_minilm()).get_input_embeddings().weight
    return weight.detach()


class _Watch:
    """Time, rounds and memory of the statements under it; a thread samples the memory of the process.

    Args:
        device: Where is computed.
        show: Called after each round.

    Attributes:
        seconds: Time from entry to exit.
        marks: Seconds and error after each round.
        peak_bytes: The most memory above the level at entry.
    """

    def __init__(self, device: torch.device, show: Callable[[], Any]) -> None:
        """Measure nothing yet."""
        self.device, self.show = device, show
        self.seconds, self.peak_bytes = 0.0, 0
        self.marks: list[tuple[float, float]] = []
        self._process, self._is_over = psutil.Process(), threading.Event()
        self._sampler = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> _Watch:
        with contextlib.suppress(AttributeError, OSError, TypeError):
            ctypes.CDLL(None).malloc_trim(0)  # glibc: else memory that is free but held would hide what is taken
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            self._level_before = torch.cuda.memory_allocated(self.device)
        else:
            self._level_before = self._process.memory_info().rss
            self._sampler.start()
        self._begin = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds = time.perf_counter() - self._begin
        if self.device.type == "cuda":
            self.peak_bytes = torch.cuda.max_memory_allocated(self.device) - self._level_before
        else:
            self._is_over.set()
            self._sampler.join()

    def mark(self, error: float) -> None:
        """Note the end of a round."""
        self.marks.append((time.perf_counter() - self._begin, error))
        self.show()

    def curve(self) -> list[tuple[float, float]]:
        """Seconds and the least error so far, after each round that has one."""
        least = accumulate((error for _, error in self.marks), min)
        found = zip(self.marks, least, strict=True)
        return [(seconds, error) for (seconds, _), error in found if math.isfinite(error)]

    def _sample(self) -> None:
        while True:
            self.peak_bytes = max(self.peak_bytes, self._process.memory_info().rss - self._level_before)
            if self._is_over.wait(_SAMPLE_SECONDS):
                return


@dataclass(frozen=True)
class _Measured:
    """What was measured of one solver; the attributes are those of ``BenchmarkRow``."""

    solver: str
    num_clusters: int
    relative_squared_error: float
    curve: list[tuple[float, float]]
    watch: _Watch


def _run_case(case: _Case, table: Tensor, number: int, progress: Any) -> list[BenchmarkRow]:
    """Measure all solvers on one table, the one of this number first."""
    solvers = (_REFERENCE, *SOLVERS)
    begin = number % len(solvers)
    measured = {}
    for solver in solvers[begin:] + solvers[:begin]:
        progress.set_postfix_str(f"{solver} on {case.name}, {case.num_rows:,} x {case.dim}")
        watch = _Watch(table.device, lambda: progress.update(0))
        measured[solver] = (
            _measure_reference(case, table, watch)
            if solver == _REFERENCE
            else _measure_preset(case.options(solver), table, watch)
        )
        progress.update()
    return [_row(case, measured[solver], measured[_REFERENCE]) for solver in solvers]


def _measure_reference(case: _Case, table: Tensor, watch: _Watch) -> _Measured:
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


def _measure_preset(options: FactoringOptions, table: Tensor, watch: _Watch) -> _Measured:
    p = options.p or 2.0
    with watch:
        use = count_tokens(options.token_counts, None, len(table))
        found = cluster_table(
            table, options, Resources(device=None, memory_limit=None, checkpoint=None), use, watch.mark
        )
    layout, _, errors = pack(found.rows, found.weights, found.clustering, p)
    curve = watch.curve() if p == 2 else []
    return _Measured(options.preset, layout.num_clusters, errors["relative_squared_error"], curve, watch)


def _row(case: _Case, measured: _Measured, reference: _Measured) -> BenchmarkRow:
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
