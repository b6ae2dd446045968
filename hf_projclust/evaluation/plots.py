"""Plots of factored tables: how fast the energy of each cluster is used up, and what each cluster loses.

Needs matplotlib, which the extra ``demo`` installs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..embedding_projclust import FactoredTable


def plot_clusters(table: Tensor, models: Mapping[str, Any], path: Path) -> None:
    """Draw the spectrum and the error of each cluster of compressed models, side by side.

    Args:
        table: The dense table that was factored, shape (n, dim).
        models: Compressed models of that table, by the name to show.
        path: Image file to write; its ending chooses the format.

    Raises:
        ModuleNotFoundError: If matplotlib is missing.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
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


def _energy_left(rows: Tensor) -> Tensor:
    """Share of the energy of rows (n, dim) that is left beyond each rank, shape (dim + 1,)."""
    eigenvalues = torch.linalg.eigvalsh(rows.T @ rows).clamp(min=0)  # ascending
    left = torch.cat([eigenvalues.new_zeros(1), eigenvalues.cumsum(0)]).flip(0)
    return left / left[0]
