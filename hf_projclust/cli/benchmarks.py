"""``hf-projclust benchmark``: what is measured on this machine."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer
from rich.console import Console
from rich.table import Table

from .compression import RatesCommand
from .files import check_file, write_json
from .messages import errors_as_messages, escaped
from .options import Device
from .tables import console_for

if TYPE_CHECKING:
    from ..evaluation.layers.benchmark import Absence, LayerRow

_BUSY = 0.2


def solvers(
    output: Annotated[Path, typer.Option(help="Image file to write the plot of error against time to.")] = Path(
        "solvers.png"
    ),
    compression: Annotated[float, typer.Option(help="Share of each table to save.")] = 0.4,
    num_clusters: Annotated[int, typer.Option(help="Subspaces of the reference and of messi.")] = 5,
    seed: Annotated[int, typer.Option(help="Seed of all starts and tables.")] = 0,
    device: Device = None,
    reference_restarts: Annotated[int, typer.Option(help="Restarts of the reference on MiniLM's table.")] = 10,
    force: Annotated[bool, typer.Option("--force", help="Replace an image that is there.")] = False,
) -> None:
    """Time every preset against a plain reference: MiniLM's table and synthetic ones, about five minutes."""
    with errors_as_messages():
        from ..demo import packaged_minilm
        from ..evaluation.machine import describe_machine
        from ..evaluation.plots import plot_benchmark
        from ..evaluation.solvers.benchmark import benchmark_solvers
        from ..sizes import megabytes

        packaged_minilm()
        check_file(output, force=force)
        rows = benchmark_solvers(
            compression=compression,
            num_clusters=num_clusters,
            seed=seed,
            device=device,
            reference_restarts=reference_restarts,
        )
        table = Table(
            title=f"Solvers, compression {compression}, seed {seed}",
            caption=f"{describe_machine(rows[0].device)}. Ratios are to the reference in this run: of all its time to "
            "that of the solver, and to when the solver's error was first no higher than the reference's.",
        )
        for heading in ("table", "solver", "k", "seconds", "rounds", "peak", "error", "faster", "to equal error"):
            table.add_column(heading, justify="left" if heading in ("table", "solver") else "right")
        for row in rows:
            ratio = row.times_faster_to_reference_error
            table.add_row(
                f"{row.table}, {row.num_rows:,} x {row.dim}",
                row.solver,
                str(row.num_clusters),
                f"{row.seconds:.2f}",
                str(row.rounds),
                megabytes(row.peak_bytes),
                f"{row.relative_squared_error:.4f}",
                f"{row.times_faster:.1f}",
                "" if ratio is None else f"{ratio:.1f}",
            )
        plot_benchmark(rows, output)
        console = Console()
        console.print(table)
        console.print(f"The plot is in {output}", soft_wrap=True)


class LayersCommand(RatesCommand):
    """A command whose ``--tokens`` and ``--vocabulary`` take several numbers."""

    several = ("--tokens", "--vocabulary")


def layers(
    tokens: Annotated[
        Optional[list[int]],  # noqa: UP045 (typer reads this on Python 3.10 too)
        typer.Option(
            help="Tokens of a call; the head computes those up to 16. By default 1 16 128 1024 8192.",
            metavar="INTEGER...",
        ),
    ] = None,
    vocabulary: Annotated[
        Optional[list[int]],  # noqa: UP045
        typer.Option(help="Rows of the tables. By default 30522 128000.", metavar="INTEGER..."),
    ] = None,
    dim: Annotated[int, typer.Option(help="Width of the tables.")] = 768,
    rounds: Annotated[int, typer.Option(help="Rounds of each measurement; five of what is slow.")] = 20,
    seed: Annotated[int, typer.Option(help="Seed of tables and tokens.")] = 0,
    device: Device = None,
    dtype: Annotated[
        str, typer.Option(help="Of the dense table and the factors: float32, bfloat16 or float16.")
    ] = "float32",
    output: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="JSON file to write every measurement to, with machine and versions."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Time the factored table against the dense one, torchao and bitsandbytes: about five minutes on two cores."""
    with errors_as_messages():
        from ..evaluation.layers.benchmark import TOKENS, VOCABULARY, benchmark_layers
        from ..evaluation.machine import busy_share, describe_machine, installed_versions

        if output is not None:
            check_file(output, force=force)
        options: dict[str, Any] = {
            "tokens": tokens or list(TOKENS),
            "vocabulary": vocabulary or list(VOCABULARY),
            "dim": dim,
            "rounds": rounds,
            "seed": seed,
            "device": device,
            "dtype": dtype,
        }
        busy = busy_share()
        rows, absences = benchmark_layers(**options)
        machine = describe_machine(device)
        tables = [_layer_table(operation, rows) for operation in dict.fromkeys(row.operation for row in rows)]
        console = console_for(*tables)
        for table in tables:
            console.print(table)
        console.print(
            f"{machine}, {dtype}, width {dim}, seed {seed}. Times and memory are ratios to the dense layer: of time "
            "the median over rounds, with quartiles. held: what the layer keeps; call: the most that a call takes "
            "beside that.",
            highlight=False,
        )
        if busy > _BUSY:
            console.print(
                f"When this began, other work took {busy:.0%} of the processors. Threads of a layer then wait for "
                "one another, and these ratios mean little: run it on an idle machine, or with OMP_NUM_THREADS=1.",
                soft_wrap=True,
                highlight=False,
            )
        for line in _absences(absences):
            console.print(line, soft_wrap=True, highlight=False)
        if output is not None:
            record = {
                "machine": machine,
                "busy_share": busy,
                "versions": installed_versions(),
                "options": options,
                "rows": [dataclasses.asdict(row) for row in rows],
                "absences": [dataclasses.asdict(absence) for absence in absences],
            }
            write_json(output, record)
            console.print(f"All measurements are in {output}", soft_wrap=True)


def _layer_table(operation: str, rows: Sequence[LayerRow]) -> Table:
    """A line for the time of each size and number of tokens, and one each for what a call takes and a layer holds."""
    from ..evaluation.layers.benchmark import EMBEDDINGS, HEAD, HEADS
    from ..sizes import megabytes

    chosen = [row for row in rows if row.operation == operation]
    in_order = [contender.name for contender in (HEADS if operation == HEAD else EMBEDDINGS)]
    names = sorted({row.contender for row in chosen}, key=in_order.index)
    table = Table(title=operation)
    for heading in ("vocabulary", "tokens", "", *names):
        table.add_column(heading, justify="left" if not heading else "right")
    sizes = dict.fromkeys((row.vocabulary, row.tokens) for row in chosen)
    for number, size in enumerate(sizes):
        found = {row.contender: row for row in chosen if (row.vocabulary, row.tokens) == size}
        dense, vocabulary = found[names[0]], f"{size[0]:,}"
        is_last = [other for other, _ in sizes][number + 1 : number + 2] != [size[0]]
        others = [found.get(name) for name in names[1:]]
        times = [
            f"{_ratio(row.ratio)} ({_ratio(row.ratio_low)}-{_ratio(row.ratio_high)})" if row else "" for row in others
        ]
        calls = [_ratio(row.peak_bytes / dense.peak_bytes) if row else "" for row in others]
        table.add_row(
            vocabulary, f"{size[1]:,}", "time", _seconds(sorted(dense.seconds)[len(dense.seconds) // 2]), *times
        )
        table.add_row("", "", "call", megabytes(dense.peak_bytes), *calls, end_section=not is_last)
        if is_last:
            held = [_ratio(row.resident_bytes / dense.resident_bytes) if row else "" for row in others]
            table.add_row("", "", "held", megabytes(dense.resident_bytes), *held, end_section=True)
    return table


def _ratio(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio < 100 else f"{ratio:,.0f}"


def _seconds(seconds: float) -> str:
    return f"{seconds * 1e6:.1f} us" if seconds < 1e-3 else f"{seconds * 1e3:.1f} ms"


def _absences(absences: Sequence[Absence]) -> list[str]:
    """A line for each contender and reason, with where it took no part."""
    where: dict[tuple[str, str, str], list[str]] = {}
    for absence in absences:
        of_tokens = "" if absence.tokens is None else f" ({absence.tokens:,} tokens)"
        key = (absence.operation, absence.contender, absence.reason)
        where.setdefault(key, []).append(f"{absence.vocabulary:,}{of_tokens}")
    return [
        escaped(f"No {contender} in {operation} of {', '.join(sizes)}: {reason}")
        for (operation, contender, reason), sizes in where.items()
    ]
