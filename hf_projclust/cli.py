"""The command line ``hf-projclust``: compress, info, decompress, demo, benchmark.

Each command does what the Python function of the same name does, with the same options, and writes folders
that are whole or absent. Errors are one message on standard error and exit code 1.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from rich.console import Console
from rich.table import Table
from safetensors import SafetensorError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    help="Shrink the vocabulary table of any Transformers model by projective clustering.",
)
benchmark_app = typer.Typer(no_args_is_help=True, help="Measure on this machine.")
app.add_typer(benchmark_app, name="benchmark")

Output = Annotated[Path, typer.Option(help="Folder to write; it must be new or empty.", show_default=False)]
Force = Annotated[bool, typer.Option("--force", help="Replace an output folder that holds something.")]
Seed = Annotated[int, typer.Option(help="Seed of the random starts.")]
Device = Annotated[
    Optional[str],  # noqa: UP045 (typer reads this on Python 3.10 too)
    typer.Option(help="Where to compute, such as cuda; by default the CPU."),
]


@app.command(
    epilog="Example: `hf-projclust compress distilbert/distilbert-base-uncased --compression 0.6 "
    "--token-counts words:en --output distilbert-pc60`"
)
def compress(
    model: Annotated[str, typer.Argument(help="Hub id or folder of a dense model.", show_default=False)],
    output: Output,
    embedding: Annotated[
        bool, typer.Option("--embedding/--no-embedding", help="Factor the input embedding, and what is tied to it.")
    ] = True,
    head: Annotated[
        bool, typer.Option("--head/--no-head", help="Factor an untied head too; a tied one shares the factors.")
    ] = False,
    preset: Annotated[
        str, typer.Option(help="adaptive, messi (subspaces of one rank), svd (one) or robust (one, l_1).")
    ] = "adaptive",
    num_clusters: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Number of subspaces, or auto; by preset: auto, 5, 1, 1.", metavar="INTEGER|auto"),
    ] = None,
    compression: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="Share of the table to save, 0 to 1. Give this or --rank."),
    ] = None,
    rank: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Coordinates that each row keeps. Give this or --compression."),
    ] = None,
    adaptive_ranks: Annotated[
        Optional[bool],  # noqa: UP045
        typer.Option(
            "--adaptive-ranks/--no-adaptive-ranks", help="A rank for each cluster; by preset: yes, no, no, no."
        ),
    ] = None,
    p: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="Power of distances, 1 (robust) to 2; by preset: 2, 2, 2, 1."),
    ] = None,
    token_counts: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            help="Use of tokens: uniform, tokenizer, words:en,zh, dataset:NAME, prompt:TEXT, or a text file; 0.3* in "
            "front weighs it. May be repeated. By preset: tokenizer, uniform, uniform, uniform."
        ),
    ] = None,
    count_exponent: Annotated[float, typer.Option(help="Power of the use of a token in its weight.")] = 0.5,
    norm_exponent: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="Errors count by norm to minus this power; by preset: 1, 0, 0, 0."),
    ] = None,
    seed: Seed = 0,
    num_starts: Annotated[int, typer.Option(help="Starts that race.")] = 2,
    max_rounds: Annotated[int, typer.Option(help="Rounds of clustering of a start, at most.")] = 100,
    tolerance: Annotated[float, typer.Option(help="Stop when rounds gain a smaller share than this.")] = 3e-4,
    device: Device = None,
    memory_limit: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Memory for the clustering, such as 1GB; the table then stays in its file."),
    ] = None,
    checkpoint: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Folder to save the clustering in after each round, and to go on from."),
    ] = None,
    standalone: Annotated[
        bool,
        typer.Option(
            "--standalone", help="Add the code that loads the model by trust_remote_code, without hf_projclust."
        ),
    ] = False,
    force: Force = False,
) -> None:
    """Factor the vocabulary table of MODEL and write the model to a folder, tokenizer included."""
    with _errors_as_messages(), _all_processes(device) as is_main:
        from .compression import compress as compress_model
        from .folders import check_apart, check_output, copy_companions, new_folder

        check_output(output, model, force=force)
        if checkpoint is not None:
            check_apart(output, checkpoint)
            check_output(checkpoint, model, force=True)
        compressed = compress_model(
            model,
            embedding=embedding,
            head=head,
            preset=preset,  # type: ignore[arg-type]
            num_clusters=int(num_clusters) if num_clusters and num_clusters.isdecimal() else num_clusters,  # type: ignore[arg-type]
            compression=compression,
            rank=rank,
            adaptive_ranks=adaptive_ranks,
            p=p,
            token_counts=token_counts,
            count_exponent=count_exponent,
            norm_exponent=norm_exponent,
            seed=seed,
            num_starts=num_starts,
            max_rounds=max_rounds,
            tolerance=tolerance,
            device=device,
            memory_limit=memory_limit,
            checkpoint=checkpoint,
        )
        if is_main:
            with new_folder(output, force=force) as folder:
                compressed.save_pretrained(folder, standalone=standalone)
                copy_companions(model, folder)
            _show_info(output)


@app.command(epilog="Example: `hf-projclust info distilbert-pc60`")
def info(
    folder: Annotated[Path, typer.Argument(help="Folder of a compressed model.", show_default=False)],
) -> None:
    """Show the clusters of a compressed model, and its sizes against the dense one."""
    with _errors_as_messages():
        _show_info(folder)


@app.command(epilog="Example: `hf-projclust decompress distilbert-pc60 --output distilbert-dense`")
def decompress(
    folder: Annotated[str, typer.Argument(help="Folder or Hub id of a compressed model.", show_default=False)],
    output: Output,
    force: Force = False,
) -> None:
    """Write a compressed model as a dense one, for servers that know only native classes."""
    with _errors_as_messages():
        from .compression import decompress as decompress_model
        from .folders import check_output, copy_companions, new_folder

        check_output(output, folder, force=force)
        dense = decompress_model(folder)
        with new_folder(output, force=force) as target:
            dense.save_pretrained(target)
            copy_companions(folder, target)
        Console().print(f"Wrote the dense model to {output}", soft_wrap=True)


@app.command(epilog="Example: `hf-projclust demo --output projclust-demo`")
def demo(
    output: Annotated[Path, typer.Option(help="Folder to write; it must be new or empty.")] = Path("projclust-demo"),
    seed: Seed = 0,
    force: Force = False,
) -> None:
    """Compress the packaged all-MiniLM-L6-v2 by 40 % with SVD, MESSI and adaptive ranks, and compare."""
    with _errors_as_messages():
        from .demo import packaged_minilm, run_demo
        from .folders import check_output, new_folder

        check_output(output, packaged_minilm(), force=force)
        with new_folder(output, force=force) as folder:
            rows = run_demo(folder, seed=seed)
        table = Table(
            title=f"all-MiniLM-L6-v2, vocabulary table compressed by 40 %, seed {seed}",
            caption="error: relative squared error of the table; "
            "cosine: mean cosine of 50 sentence embeddings to those of the dense model",
        )
        for heading in ("table", "table, params", "model, params", "file on disk", "error", "cosine"):
            table.add_column(heading, justify="left" if heading == "table" else "right")
        for row in rows:
            table.add_row(
                row.name,
                f"{row.sizes.table_parameters:,}",
                f"{row.sizes.model_parameters:,}",
                _megabytes(row.sizes.model_disk_bytes),
                f"{row.relative_squared_error:.4f}",
                f"{row.cosine:.3f}",
            )
        console = Console()
        console.print(table)
        console.print(f"Models and the plot clusters.png are in {output}", soft_wrap=True)


@benchmark_app.command(epilog="Example: `hf-projclust benchmark solvers --output solvers.png`")
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
    with _errors_as_messages():
        from .demo import packaged_minilm
        from .evaluation.machine import describe_machine
        from .evaluation.plots import plot_benchmark
        from .evaluation.solver_benchmark import benchmark_solvers

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
                _megabytes(row.peak_bytes),
                f"{row.relative_squared_error:.4f}",
                f"{row.times_faster:.1f}",
                "" if ratio is None else f"{ratio:.1f}",
            )
        plot_benchmark(rows, output)
        console = Console()
        console.print(table)
        console.print(f"The plot is in {output}", soft_wrap=True)


def _show_info(folder: Path) -> None:
    from .sizes import measure, read_config

    dense, compressed = measure(folder)
    config = read_config(folder)
    console = Console()
    for name, layout in config.factor_layouts.items():
        solver = config.projclust["solver"][name]
        clusters = Table(title=f"{folder}, {name}: {layout.num_embeddings:,} tokens x {layout.dim}, {solver['preset']}")
        for heading in ("cluster", "tokens", "rank", "energy kept"):
            clusters.add_column(heading, justify="right")
        kept = [f"{share:.1%}" for share in solver["energy_kept"]]
        rows = zip_longest(layout.cluster_sizes, layout.cluster_ranks, kept, fillvalue="added since")
        for number, (size, rank, share) in enumerate(rows, 1):
            clusters.add_row(str(number), f"{size:,}", str(rank), share)
        console.print(clusters)
        console.print(f"Relative squared error when compressed: {solver['relative_squared_error']:.4f}")
        console.print(f"Token counts: {_escaped(solver.get('token_counts', 'uniform'))}")
    sizes = Table(title="Sizes (dense: computed)")
    for heading in ("", "dense", "compressed", "saved"):
        sizes.add_column(heading, justify="left" if heading == "" else "right")
    for label, name, show in (
        ("table, parameters", "table_parameters", "{:,}".format),
        ("model, parameters", "model_parameters", "{:,}".format),
        ("table, on disk", "table_disk_bytes", _megabytes),
        ("model, on disk", "model_disk_bytes", _megabytes),
        ("table, in memory", "table_memory_bytes", _megabytes),
        ("model, in memory", "model_memory_bytes", _megabytes),
    ):
        before, after = getattr(dense, name), getattr(compressed, name)
        sizes.add_row(label, show(before), show(after), f"{1 - after / before:.1%}" if before else "")
    console.print(sizes)


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:,.1f} MB"


@contextlib.contextmanager
def _errors_as_messages() -> Iterator[None]:
    # Ended from outside, a run cleans up as after Ctrl-C.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    except (ValueError, TypeError, OSError, ImportError, SafetensorError) as error:
        _print_error(error)
        raise typer.Exit(1) from error
    except (RuntimeError, MemoryError) as error:
        if (message := _failure_of_the_machine(error)) is None:
            raise
        _print_error(message)
        raise typer.Exit(1) from error


def _print_error(message: object) -> None:
    Console(stderr=True).print(f"[red]Error:[/red] {_escaped(message)}", soft_wrap=True, highlight=False)


def _failure_of_the_machine(error: Exception) -> str | None:
    """A message for want of memory and for numbers that torch cannot work with; None for all that may be a bug."""
    import torch

    reason = next(iter(str(error).splitlines()), type(error).__name__)
    if isinstance(error, torch.linalg.LinAlgError):
        return (
            f"a decomposition failed ({reason}); expected a table whose rows are not all but equal or extremely large. "
            "Try another --seed or --device, or a larger --rank."
        )
    # On the CPU torch raises a plain RuntimeError, which only its text tells from others.
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        return (
            f"the memory is not enough ({reason}); expected room for the model and the clustering. Use a --device that "
            "has more, or give hf-projclust compress a --memory-limit, such as 1GB."
        )
    return None


@contextlib.contextmanager
def _all_processes(device: str | None) -> Iterator[bool]:
    """Join the processes that torchrun or accelerate launch started; whether this one writes and shows."""
    if "LOCAL_RANK" not in os.environ:
        yield True
        return
    from accelerate import PartialState
    from transformers.utils import logging

    state = PartialState(cpu=device is None or device == "cpu")
    if not state.is_main_process:
        logging.disable_progress_bar()
    try:
        yield state.is_main_process
        state.wait_for_everyone()
    finally:
        state.destroy_process_group()


def _escaped(value: Any) -> str:
    from rich.markup import escape

    return escape(str(value))
