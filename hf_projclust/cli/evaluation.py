"""``hf-projclust evaluate``: what a compressed model lost against the dense one: a table, a file, the card."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer
from rich.console import Console
from rich.table import Table

from .files import check_file, write_json
from .messages import errors_as_messages, escaped
from .options import Device
from .tables import console_for

if TYPE_CHECKING:
    from ..evaluation.comparison import Evaluation


def evaluate(
    folder: Annotated[Path, typer.Argument(help="Folder of a compressed model.", show_default=False)],
    against: Annotated[
        str, typer.Option(help="Hub id or folder of the dense model that it was made from.", show_default=False)
    ],
    text: Annotated[
        Optional[Path],  # noqa: UP045 (typer reads this on Python 3.10 too)
        typer.Option(
            help="Text file, a line a text, or folder of such; by default 50 English sentences of this package."
        ),
    ] = None,
    sts: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="File with columns sentence1, sentence2, score, such as GLUE's STS-B/dev.tsv."),
    ] = None,
    task: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Task of GLUE that both models were fine-tuned for, such as rte."),
    ] = None,
    data_dir: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Folder of GLUE in its official layout; by default the Hub's."),
    ] = None,
    max_length: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Tokens of a text, at most; by default 512, and 128 of an example of the task."),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Texts computed at a time, at most.")] = 16,
    device: Device = None,
    seed: Annotated[int, typer.Option(help="Seed of the tokens hidden from masked language models.")] = 0,
    checkpoint: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Folder to keep each measured figure in, and to go on from; delete it afterwards."),
    ] = None,
    output: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="JSON file to write all of it to, with machine and versions."),
    ] = None,
    plot: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Image to draw the figures into; its ending chooses the format."),
    ] = None,
    card: Annotated[bool, typer.Option("--card", help="Put the figures into the model card of FOLDER.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an output file that is there.")] = False,
) -> None:
    """Measure what FOLDER lost against the dense model: embeddings, predictions, perplexity, and tasks as asked."""
    with errors_as_messages():
        from ..cards import render_card, write_card
        from ..evaluation.comparison import evaluate as evaluate_folder
        from ..evaluation.plots import check_image, plot_figures
        from ..evaluation.record import note_evaluation

        for file in (output, plot):
            if file is not None:
                check_file(file, force=force)
        if plot is not None:
            check_image(plot)
        if card:
            render_card(folder)  # which refuses a folder, or a card in it, that nothing could be put into
        found = evaluate_folder(
            folder,
            against,
            text=text,
            sts=sts,
            task=task,
            data_dir=data_dir,
            max_length=max_length,
            batch_size=batch_size,
            device=device,
            seed=seed,
            checkpoint=checkpoint,
        )
        console = _show(found)
        if output is not None:
            write_json(output, found.to_dict())
            console.print(f"All of it is in {escaped(output)}", soft_wrap=True, highlight=False)
        if plot is not None:
            plot_figures(found.figures, plot, title=f"{found.folder} against {found.against}")
            console.print(f"The plot is in {escaped(plot)}", soft_wrap=True, highlight=False)
        if card:
            note_evaluation(folder, found.figures, found.date)
            write_card(folder)
            console.print(f"The figures are in {escaped(folder / 'README.md')}", soft_wrap=True, highlight=False)


def _show(found: Evaluation) -> Console:
    """Print figures and sizes, a line each; what comes after goes to the same console."""
    from ..sizes import megabytes

    title = f"{found.folder} against {found.against}: {found.architecture}"
    table = Table(title=escaped(title), caption=f"{found.num_tokens:,} tokens of text, seed {found.options['seed']}.")
    for heading in ("", "on", "dense", "compressed", "difference"):
        table.add_column(heading, justify="left" if heading in ("", "on") else "right")
    for figure in found.figures:
        table.add_row(*(escaped(text) for text in figure.cells().values()))
    table.add_section()
    dense, compressed = found.sizes["dense"], found.sizes["compressed"]
    for label, name in (
        ("model, parameters", "model_parameters"),
        ("table, bytes on disk", "table_disk_bytes"),
        ("model, bytes on disk", "model_disk_bytes"),
        ("model, bytes in memory", "model_memory_bytes"),
    ):
        if name in dense:
            before, after = dense[name], compressed[name]
            shown = [f"{number:,}" if name == "model_parameters" else megabytes(number) for number in (before, after)]
            table.add_row(label, "", *shown, f"{after / before - 1:+.1%}")
    console = console_for(table)
    console.print(table)
    console.print(f"{found.machine}.", soft_wrap=True, highlight=False)
    if found.pooling is not None:
        console.print(f"Embeddings of pairs: {found.pooling}.", soft_wrap=True, highlight=False)
    return console
