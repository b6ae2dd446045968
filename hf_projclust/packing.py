"""A clustering in, the tensors that a checkpoint stores out, and what is lost by them.

Filled block by block, so that only the factors themselves need memory. How rows were clustered is decided in
``solvers``; how the tensors are read is in ``table_projclust``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .layout_projclust import FactorLayout
from .solvers import ProjectiveClustering, Rows, lp_coefficients


def pack(
    rows: Rows, weights: Tensor, clustering: ProjectiveClustering, p: float
) -> tuple[FactorLayout, dict[str, Tensor], dict[str, Any]]:
    """Make the stored tensors of a clustering.

    Args:
        rows: The table, unweighted.
        weights: What the squared error of each row counts, shape (n,).
        clustering: The clusters and their bases.
        p: In [1, 2]: coordinates are those of the least entrywise l_p error.

    Returns:
        The layout; ``coefficients``, ``bases`` and ``rows`` as in ``table_projclust``, in the table's dtype; and
        the errors, after rounding to that dtype: ``energy_kept`` of each cluster, ``relative_squared_error``,
        ``weighted_relative_squared_error`` and, for p < 2, ``relative_lp_error``.
    """
    dtype, dim = rows.table.dtype, rows.dim
    sizes = torch.bincount(clustering.assignment, minlength=len(clustering.bases)).tolist()
    layout = FactorLayout(dim, tuple(sizes), tuple(len(basis) for basis in clustering.bases))
    stored_bases = [(basis[:0] if len(basis) == dim else basis).to(dtype) for basis in clustering.bases]
    coefficients = torch.empty(sum(layout.coefficient_counts), dtype=dtype, device=rows.device)
    losses, filled = [_Loss(p) for _ in sizes], [0] * len(sizes)
    for span in rows.spans():
        block, clusters = rows.read(span), clustering.assignment[span]
        for number, (start, rank) in enumerate(zip(_starts(layout), layout.cluster_ranks, strict=True)):
            is_member = clusters == number
            dense = block[is_member]  # (m, d)
            fitted = dense if rank == dim else lp_coefficients(dense, clustering.bases[number], p)
            kept = fitted.to(dtype)  # (m, j)
            first = start + filled[number] * rank
            coefficients[first : first + kept.numel()] = kept.flatten()
            filled[number] += len(dense)
            rebuilt = kept.to(dense) if rank == dim else kept.to(dense) @ stored_bases[number].to(dense)
            losses[number].add(dense, rebuilt, weights[span][is_member])
    tensors = {
        "coefficients": coefficients,
        "bases": torch.cat(stored_bases).contiguous(),
        "rows": clustering.assignment.argsort(stable=True).argsort().to(torch.int32),
    }
    return layout, tensors, _record(losses, p)


class _Loss:
    """Energy of the rows of a cluster and of their errors: squared, weighted and squared, and to the power p."""

    def __init__(self, p: float) -> None:
        self.p = p
        self.energy = torch.zeros(3, dtype=torch.float64)
        self.error = torch.zeros(3, dtype=torch.float64)

    def add(self, dense: Tensor, rebuilt: Tensor, weights: Tensor) -> None:
        """Add rows, shape (m, dim), with their weights, shape (m,)."""
        for total, values in ((self.energy, dense.double()), (self.error, dense.double() - rebuilt.double())):
            squared = values.square().sum(dim=1)
            total += torch.stack([squared.sum(), weights @ squared, values.abs().pow(self.p).sum()]).cpu()


def _record(losses: list[_Loss], p: float) -> dict[str, Any]:
    energy, error = (sum((getattr(loss, name) for loss in losses), torch.zeros(3)) for name in ("energy", "error"))
    squared, weighted, power = (share(float(e), float(of)) for e, of in zip(error, energy, strict=True))
    record = {
        "energy_kept": [1 - share(float(loss.error[0]), float(loss.energy[0])) for loss in losses],
        "relative_squared_error": squared,
        "weighted_relative_squared_error": weighted,
    }
    return record if p == 2 else {**record, "relative_lp_error": power}


def _starts(layout: FactorLayout) -> list[int]:
    """Where the coefficients of each cluster begin."""
    counts = layout.coefficient_counts
    return [sum(counts[:number]) for number in range(len(counts))]


def share(part: float, whole: float) -> float:
    """A part of a whole; 0 of nothing."""
    return part / whole if whole > 0 else 0.0
