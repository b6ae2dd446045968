"""A clustering in, the tensors that a checkpoint stores out, and what is lost by them.

Filled block by block, so that only the factors themselves need memory. How rows were clustered is decided in
``solvers``; how the tensors are read is in ``table_projclust``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .layout_projclust import FactorLayout
from .losses import Losses
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
    losses, filled = Losses(len(sizes), p), [0] * len(sizes)
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
            rebuilt = kept if rank == dim else (kept.to(dense) @ stored_bases[number].to(dense)).to(dtype)
            losses.add(number, dense, rebuilt, weights[span][is_member])
    tensors = {
        "coefficients": coefficients,
        "bases": torch.cat(stored_bases).contiguous(),
        "rows": clustering.assignment.argsort(stable=True).argsort().to(torch.int32),
    }
    return layout, tensors, losses.record()


def _starts(layout: FactorLayout) -> list[int]:
    """Where the coefficients of each cluster begin."""
    counts = layout.coefficient_counts
    return [sum(counts[:number]) for number in range(len(counts))]
