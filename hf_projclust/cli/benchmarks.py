"""``hf-projclust benchmark``: what is measured on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from .messages import errors_as_messages
from .options import Device


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
        from ..evaluation.solver_benchmark import benchmark_solvers
        from ..sizes import megabytes

        packaged_minilm()
        if output.is_dir() or (output.exists() and not force):
            raise FileExistsError(
                f"output {str(output)!r} is there; expected a file to make. Choose another --output, or add --force."
            )
        if not output.resolve().parent.is_dir():
            raise FileNotFoundError(f"output {str(output)!r} is in no folder; expected one that exists. Make it first.")
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
