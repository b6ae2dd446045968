"""Plots: what a model lost, how fast the energy of each cluster is used up and what it loses, how long solvers take.

matplotlib is imported when a plot is drawn, so that nothing else waits for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

import torch
from torch import Tensor

from ..table_projclust import FactoredTable
from .figures import Figure
from .machine import describe_machine
from .solvers.runs import SOLVERS, BenchmarkRow
from .whole_files import whole_file


def plot_clusters(table: Tensor, models: Mapping[str, Any], path: Path) -> None:
    """Draw the spectrum and the error of each cluster of compressed models, side by side.

    Args:
        table: The dense table that was factored, shape (n, dim).
        models: Compressed models of that table, by the name to show.
        path: Image file to write; its ending chooses the format.
    """
    from matplotlib.figure import Figure as Image

    figure = Image(figsize=(11, 4.2), layout="constrained")
    spectra, errors = figure.subplots(1, 2, width_ratios=(3, 2))
    labels: dict[int, str] = {}
    place = 0
    for number, (name, model) in enumerate(models.items()):
        embedding: FactoredTable = model.get_input_embeddings()
        layout, losses = embedding.layout, []
        order = embedding.rows.long().argsort()  # token of each stored row
        clusters = table[order].double().split(layout.cluster_sizes)
        for rank, rows in zip(layout.cluster_ranks, clusters, strict=True):
            left = _energy_left(rows)
            (line,) = spectra.plot(left, color=f"C{number}", linewidth=1)
            spectra.plot(rank, left[rank], "o", color=f"C{number}", markersize=4)
            losses.append(float(left[rank]))
        line.set_label(f"{name}: {layout.num_clusters} of rank {max(layout.cluster_ranks)}")
        places = range(place, place + len(losses))
        errors.bar(list(places), losses, color=f"C{number}", width=0.8, label=name)
        labels |= {at: str(at - place + 1) for at in places}
        place += len(losses) + 1
    spectra.set(
        xlabel="rank", ylabel="share of energy left", yscale="log", title="Spectrum of each cluster", ylim=(1e-3, 1)
    )
    spectra.legend(title="model (dots: the rank kept)")
    errors.set(xlabel="cluster", ylabel="relative squared error", title="Error of each cluster")
    errors.set_xticks(list(labels), list(labels.values()))
    errors.legend(loc="lower right")
    figure.savefig(path, dpi=150)


def plot_record(config: Any, path: str | Path) -> None:
    """Draw the clusters of a compressed model, as its configuration describes them: tokens, ranks, and what is lost.

    Args:
        config: The configuration of a compressed model.
        path: Image file to write; its ending chooses the format.
    """
    from matplotlib.figure import Figure as Image

    layouts = config.factor_layouts
    figure = Image(figsize=(10, 3.6 * len(layouts)), layout="constrained")
    panels = figure.subplots(len(layouts), 3, squeeze=False)
    for (name, layout), (sizes, ranks, losses) in zip(layouts.items(), panels, strict=True):
        numbers = range(1, layout.num_clusters + 1)
        kept = config.projclust["solver"][name]["energy_kept"]
        sizes.bar(numbers, layout.cluster_sizes, color="C0")
        sizes.set(title=f"Tokens ({name})", ylabel="tokens")
        ranks.bar(numbers, layout.cluster_ranks, color="C1")
        ranks.axhline(layout.dim, color="black", linestyle="--", linewidth=1, label=f"dense: {layout.dim}")
        ranks.set(title="Rank", ylabel="coordinates of a token", ylim=(0, 1.2 * layout.dim))
        ranks.legend(loc="upper right", frameon=False)
        losses.bar(numbers[: len(kept)], [1 - share for share in kept], color="C2")
        losses.set(title="Error", ylabel="relative squared error")
        for panel in (sizes, ranks, losses):
            panel.set_xlabel("cluster")
            panel.xaxis.get_major_locator().set_params(integer=True)
            panel.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def plot_figures(figures: Sequence[Figure], path: str | Path, *, title: str) -> None:
    """Draw the figures of an evaluation, a panel for each, whose units differ: the dense model beside the compressed.

    Args:
        figures: What was measured.
        path: Image file to write, whole or not at all; its ending chooses the format.
        title: Of what.

    Raises:
        ValueError: If there are no figures, or the image's format is unknown.
    """
    if not figures:
        raise ValueError("no figures to draw; expected those of evaluate().")
    check_image(path)
    from matplotlib.figure import Figure as Image

    columns = min(4, len(figures))
    lines = -(-len(figures) // columns)
    image = Image(figsize=(3.4 * columns, 3.2 * lines + 0.6), layout="constrained")
    panels = image.subplots(lines, columns, squeeze=False).flatten()
    for panel in panels[len(figures) :]:
        panel.remove()
    for figure, panel in zip(figures, panels, strict=False):
        cells = figure.cells()
        bars = panel.bar(("dense", "compressed"), (figure.dense, figure.compressed), color=("C7", "C0"), width=0.6)
        panel.bar_label(bars, (cells["dense"], cells["compressed"]), fontsize="small")
        panel.set_title("\n".join(wrap(cells["figure"], 34) + wrap(cells["on"], 34)), fontsize="small")
        panel.margins(y=0.15)
        panel.spines[["top", "right"]].set_visible(False)
    image.suptitle(title, fontsize="medium")
    with whole_file(path) as partial:
        image.savefig(partial, dpi=150)


def plot_benchmark(rows: Sequence[BenchmarkRow], path: str | Path) -> None:
    """Draw the relative squared error against seconds, a panel for each table and a line for each solver.

    Args:
        rows: What ``benchmark_solvers`` returned.
        path: Image file to write; its ending chooses the format.

    Raises:
        ValueError: If there are no rows.
    """
    if not rows:
        raise ValueError("no rows to draw; expected those of benchmark_solvers().")
    from matplotlib.figure import Figure as Image

    tables = list(dict.fromkeys((row.table, row.num_rows, row.dim) for row in rows))
    columns = min(3, len(tables))
    lines = -(-len(tables) // columns)
    figure = Image(figsize=(max(7.0, 4.6 * columns), 3.8 * lines + 0.6), layout="constrained")
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


def check_image(path: str | Path) -> None:
    """Refuse an image of a format that cannot be drawn.

    Args:
        path: Image file.

    Raises:
        ValueError: If its ending is none of those that matplotlib draws.
    """
    from matplotlib.figure import Figure as Image

    known = Image().canvas.get_supported_filetypes()
    if (ending := Path(path).suffix.removeprefix(".").lower()) not in known:
        raise ValueError(
            f"image {str(path)!r} ends in {ending!r}; expected one of {', '.join(sorted(known))}. Name it figures.png, "
            "for example."
        )


def _energy_left(rows: Tensor) -> Tensor:
    """Share of the energy of rows (n, dim) that is left beyond each rank, shape (dim + 1,)."""
    eigenvalues = torch.linalg.eigvalsh(rows.T @ rows).clamp(min=0)  # ascending
    left = torch.cat([eigenvalues.new_zeros(1), eigenvalues.cumsum(0)]).flip(0)
    return left / left[0]
