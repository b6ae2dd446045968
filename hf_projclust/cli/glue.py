"""``hf-projclust benchmark glue``: classifiers of GLUE compressed, and scored before and after more fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer
from rich.table import Table

from .compression import RatesCommand
from .messages import errors_as_messages, escaped
from .options import Device
from .tables import console_for

if TYPE_CHECKING:
    from ..evaluation.protocol.summary import SummaryRow


class GlueCommand(RatesCommand):
    """A command whose ``--tasks``, ``--methods``, ``--rates`` and ``--seeds`` take several values."""

    several = ("--rates", "--seeds")
    names = ("--tasks", "--methods")

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the option before each of its names; numbers are spread by the base class."""
        spread: list[str] = []
        taking = ""  # the option that takes the names which come next
        for arg in args:
            if arg.startswith("-"):
                taking = name if (name := arg.partition("=")[0]) in self.names else ""
            elif taking and spread[-1] != taking:
                spread.append(taking)
            spread.append(arg)
        return super().parse_args(ctx, spread)


def glue(
    base: Annotated[str, typer.Argument(help="Hub id or folder of a dense model; it comes first.", show_default=False)],
    output: Annotated[
        Path,
        typer.Option(
            help="Folder to write; one of an earlier run is gone on with. It holds the factors of all compressed "
            "classifiers until these are fine-tuned: some GB.",
            show_default=False,
        ),
    ],
    tasks: Annotated[
        Optional[list[str]],  # noqa: UP045 (typer reads this on Python 3.10 too)
        typer.Option(help="By default all of the folder, or cola mrpc rte sst2 stsb wnli.", metavar="NAME..."),
    ] = None,
    methods: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            help="svd, messi, robust, adaptive, adaptive-task (tokens counted in the task's training texts) or "
            "adaptive-int4 (factors in few bits, which are frozen); by default all.",
            metavar="NAME...",
        ),
    ] = None,
    rates: Annotated[
        Optional[list[float]],  # noqa: UP045
        typer.Option(help="Shares of the table to save. By default 0.28 0.4 0.6 0.8.", metavar="FLOAT..."),
    ] = None,
    seeds: Annotated[
        Optional[list[int]],  # noqa: UP045
        typer.Option(help="Seeds of heads, order, dropout and clustering. By default 0.", metavar="INTEGER..."),
    ] = None,
    data_dir: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Folder in the layout of GLUE's official download; by default the Hub's data set."),
    ] = None,
    epochs: Annotated[float, typer.Option(help="Epochs of the dense classifier, before compression.")] = 3.0,
    extra_epochs: Annotated[
        float, typer.Option(help="Epochs after it, of compressed and dense classifiers; 0 leaves them out.")
    ] = 2.0,
    learning_rate: Annotated[float, typer.Option(help="The greatest one.")] = 5e-5,
    batch_size: Annotated[int, typer.Option(help="Examples of a step.")] = 32,
    max_length: Annotated[int, typer.Option(help="Tokens of an example, at most.")] = 128,
    max_train: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Train on so many examples at most, drawn at random, the same for all seeds."),
    ] = None,
    token_counts: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="Use of tokens for adaptive and adaptive-int4, as in compress. By default words:en."),
    ] = None,
    bf16: Annotated[bool, typer.Option("--bf16", help="Fine-tune under autocast to bfloat16.")] = False,
    device: Device = None,
    keep_models: Annotated[
        bool,
        typer.Option(
            "--keep-models",
            help="Keep fine-tuned dense classifiers, to add methods or rates later; a GPU makes no equal ones again.",
        ),
    ] = False,
) -> None:
    """Fine-tune BASE on GLUE's tasks, compress, score, fine-tune more, score again; a repeated command goes on."""
    with errors_as_messages():
        from ..evaluation.protocol.plan import Protocol, default_tasks
        from ..evaluation.protocol.run import run_protocol
        from ..evaluation.protocol.tables import STAGES, notes

        given = {"methods": methods, "rates": rates, "seeds": seeds, "token_counts": token_counts}
        protocol = Protocol(
            base=base,
            tasks=tasks or default_tasks(data_dir),
            data_dir=data_dir,
            epochs=epochs,
            extra_epochs=extra_epochs,
            learning_rate=learning_rate,
            batch_size=batch_size,
            max_length=max_length,
            max_train=max_train,
            bf16=bf16,
            device=device,
            **{name: value for name, value in given.items() if value},  # type: ignore[arg-type]
        )
        rows, plan = run_protocol(protocol, output, keep_models=keep_models)
        tables = [
            _table(title, chosen)
            for stage, title in STAGES.items()
            if (chosen := [row for row in rows if row.stage == stage])
        ]
        console = console_for(*tables)
        for table in tables:
            console.print(table)
        for line in notes(plan, []):
            console.print(escaped(line), soft_wrap=True, highlight=False)
        console.print(f"Tables, the plot and all cells are in {escaped(output)}", soft_wrap=True, highlight=False)


def _table(title: str, rows: Sequence[SummaryRow]) -> Table:
    from ..evaluation.protocol.tables import cells_of

    table = Table(title=title)
    for heading in cells_of(rows[0]):
        table.add_column(heading, justify="left" if heading == "method" else "right")
    for number, row in enumerate(rows):
        is_last = number + 1 == len(rows) or rows[number + 1].method != row.method
        table.add_row(*cells_of(row).values(), end_section=is_last)
    return table
