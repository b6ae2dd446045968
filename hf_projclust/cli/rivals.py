"""``hf-projclust benchmark rivals``: projective clustering and what else fits in as many bytes, on one model."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer
from rich.table import Table

from .compression import RatesCommand
from .files import check_file, write_json
from .messages import errors_as_messages, escaped
from .options import Seed
from .tables import console_for

if TYPE_CHECKING:
    from ..evaluation.rivals.points import Figure, RivalPoint

_SCORE = "Spearman correlation of mean-pooled embeddings, %"
_FIGURES = {"mean_cosine": "cosine", "score": "score"}


class RivalsCommand(RatesCommand):
    """A command whose ``--ratio`` takes several numbers."""

    several = ("--ratio",)


def rivals(
    model: Annotated[str, typer.Argument(help="Hub id or folder of a dense model.", show_default=False)],
    ratio: Annotated[
        Optional[list[float]],  # noqa: UP045 (typer reads this on Python 3.10 too)
        typer.Option(help="Times smaller than the table. By default 2 4 8 16 20.", metavar="FLOAT..."),
    ] = None,
    token_counts: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="Use of tokens, as of compress; all methods are given the same. By default tokenizer."),
    ] = None,
    count_exponent: Annotated[float, typer.Option(help="Power of the use of a token in its weight.")] = 0.5,
    norm_exponent: Annotated[float, typer.Option(help="Errors count by norm to minus this power.")] = 1.0,
    text: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="File of texts to embed, one a line; by default fifty bundled sentences."),
    ] = None,
    sts: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="File with columns sentence1, sentence2, score, for the Spearman correlation of each table."),
    ] = None,
    seed: Seed = 0,
    output: Annotated[Path, typer.Option(help="Image file to write the plot of quality against bytes to.")] = Path(
        "rivals.png"
    ),
    json_file: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--json", help="JSON file to write every measurement to, with machine and versions."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there.")] = False,
) -> None:
    """Compare MODEL's table with rounding, product quantisation, frequency blocks and trimming in as many bytes."""
    with errors_as_messages():
        from ..evaluation.extras import needed
        from ..evaluation.fidelity import embed_sentences
        from ..evaluation.machine import describe_machine, installed_versions
        from ..evaluation.plots import check_image
        from ..evaluation.rivals.benchmark import RATIOS, compare_rivals
        from ..evaluation.rivals.plots import plot_rivals
        from ..evaluation.rivals.points import front
        from ..evaluation.similarity import spearman
        from ..evaluation.texts import read_scored_pairs, read_texts
        from ..loading import load_tokenizer
        from ..token_counts import describe_sources

        check_image(output)
        for file in (output, json_file):
            if file is not None:
                check_file(file, force=force)
        if json_file is not None and json_file.resolve() == output.resolve():
            raise ValueError(f"--output and --json are both {str(output)!r}; expected two files. Choose another.")
        options: dict[str, Any] = {
            "token_counts": token_counts or ["tokenizer"],
            "ratios": ratio or list(RATIOS),
            "seed": seed,
            "count_exponent": count_exponent,
            "norm_exponent": norm_exponent,
        }
        read, pairs = read_texts(text), None if sts is None else read_scored_pairs(sts)
        tokenizer = load_tokenizer(model)
        score = None
        if pairs is not None:
            score = lambda scored: spearman(partial(embed_sentences, scored, tokenizer), pairs)  # noqa: E731
        points, absences = compare_rivals(model, texts=read.lines, score=score, tokenizer=tokenizer, **options)
        figures: tuple[Figure, ...] = ("mean_cosine",) if score is None else ("mean_cosine", "score")
        standings = {figure: front(points, figure) for figure in figures}
        counts = ", ".join(describe_sources(options["token_counts"]))
        title = f"{Path(model).name}, token counts {counts}, seed {seed}"
        plot_rivals(points, output, title=title, score_name=_SCORE)
        table = _table(points, title)
        console = console_for(table)
        console.print(table)
        lines = [f"No {absence.method}, {absence.setting}: {absence.reason}" for absence in absences]
        for figure, found in standings.items():
            for standing in found:
                best, point = standing.best_rival, standing.point
                if best is not None and standing.is_beaten:
                    lines.append(
                        f"By {_FIGURES[figure]} the best rival of no more bytes is better than {point.method}, "
                        f"{point.setting}: {best.method}, {best.setting} ({getattr(best, figure):.5g})."
                    )
        for line in [f"{describe_machine()}.", *lines]:
            console.print(escaped(line), soft_wrap=True, highlight=False)
        if json_file is not None:
            record = {
                "machine": describe_machine(),
                "versions": {**installed_versions(), "faiss": needed("faiss").__version__},
                "options": {
                    "model": Path(model).name if Path(model).is_dir() else model,
                    "texts": read.name,
                    "score": None if pairs is None else f"{_SCORE}, {pairs.name}",
                    **options,
                    "token_counts": describe_sources(options["token_counts"]),
                },
                "points": [dataclasses.asdict(point) for point in points],
                "absences": [dataclasses.asdict(absence) for absence in absences],
                "front": {name: [dataclasses.asdict(one) for one in each] for name, each in standings.items()},
            }
            write_json(json_file, record)
            console.print(f"All measurements are in {json_file}", soft_wrap=True)
        console.print(f"The plot is in {output}", soft_wrap=True)


def _table(points: Sequence[RivalPoint], title: str) -> Table:
    """A line for each point, the largest first."""
    table = Table(
        title=escaped(title),
        caption="error: relative squared error of the table; in use: with rows weighted by the use of their tokens; "
        f"cosine: mean cosine of sentence embeddings to those of the dense model; score: {_SCORE}",
    )
    scored = ("score",) if all(point.score is not None for point in points) else ()
    for heading in ("method", "setting", "bytes", "times smaller", "error", "in use", "cosine", *scored):
        table.add_column(heading, justify="left" if heading in ("method", "setting") else "right")
    for point in sorted(points, key=lambda point: -point.table_bytes):
        table.add_row(
            point.method,
            point.setting,
            f"{point.table_bytes:,}",
            f"{point.times_smaller:.2f}",
            f"{point.relative_squared_error:.4f}",
            f"{point.weighted_relative_squared_error:.4f}",
            f"{point.mean_cosine:.5f}",
            *(f"{point.score:.2f}" for _ in scored),
        )
    return table
