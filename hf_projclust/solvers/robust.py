"""Robust factors: the l_p norm of the error in place of its square, so that outlying rows do not bend the subspace.

"Compressed Deep Networks: Goodbye SVD, Hello Robust Low-Rank Approximation" (arXiv 2009.05647) minimises the
entrywise l_p norm by the Loewner ellipsoid of the table. Lewis weights (Cohen and Peng 2015, "l_p row sampling by
Lewis weights") give the same change of density from about ten Gram matrices. Neither finds clusters.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .ranks import RankRule
from .rounds import Fit
from .rows import Rows, sum_over_processes
from .subspaces import spectrum

LEWIS_ROUNDS = 12
FIT_ROUNDS = 60
_CUT_OFF = 1e-10


def lewis_weights(rows: Rows, p: float) -> tuple[Tensor, Tensor]:
    """Lewis weights t of the rows: t_r = (a_r (A^T T^(1 - 2/p) A)^-1 a_r^T)^(p/2).

    Args:
        rows: The table A, shape (n, dim).
        p: In [1, 2).

    Returns:
        The weights, shape (n,), which sum to the rank of A, complete on every process; and the matrix
        A^T T^(1 - 2/p) A, shape (dim, dim), float64.
    """
    weights = torch.ones(rows.num_rows, dtype=torch.float64, device=rows.device)
    for _ in range(LEWIS_ROUNDS):
        root = _inverse_root(_weighted_gram(rows, weights, p))  # (dim, dim)
        updated = torch.zeros_like(weights)
        for span in rows.own_spans():
            updated[span] = (rows.read(span).double() @ root).square().sum(dim=1).pow(p / 2)
        weights = sum_over_processes(updated)
    return weights, _weighted_gram(rows, weights, p)


def lewis_fit(rows: Rows, rule: RankRule, p: float) -> Fit:
    """One subspace from the singular value decomposition of T^(1/2 - 1/p) A, with T the Lewis weights.

    Args:
        rows: The table A, shape (n, dim).
        rule: Gives the rank of the subspace.
        p: In [1, 2).

    Returns:
        The fit, with all rows in one cluster.
    """
    _, gram = lewis_weights(rows, p)
    found = spectrum(gram.unsqueeze(0), rows.dtype)
    allocation = rule(found.residuals().cpu(), [rows.num_rows])
    assignment = torch.zeros(rows.num_rows, dtype=torch.int64, device=rows.device)
    return Fit(assignment, found.vectors, allocation, float("inf"))


def lp_coefficients(rows: Tensor, basis: Tensor, p: float) -> Tensor:
    """Coordinates of rows in a basis with the least entrywise l_p error.

    The alternating direction method of multipliers (Boyd et al. 2011, section 6.1) splits the error from the
    coordinates, so that a step costs two products with the basis.

    Args:
        rows: Shape (n, dim).
        basis: Orthonormal rows, shape (rank, dim).
        p: In [1, 2]; 2 is the projection.

    Returns:
        Coordinates, shape (n, rank). None has a larger l_p error than the projection.
    """
    best = rows @ basis.T  # (n, rank)
    if p == 2 or len(basis) in (0, rows.shape[1]):
        return best
    error = rows - best @ basis  # (n, dim)
    best_norm = error.abs().pow(p).sum(dim=1)  # (n,)
    step = error.abs().mean(dim=1, keepdim=True).clamp(min=torch.finfo(rows.dtype).tiny).pow(2 - p)  # (n, 1)
    split, dual = error, torch.zeros_like(error)
    for _ in range(FIT_ROUNDS):
        found = (rows - split + dual) @ basis.T
        error = rows - found @ basis
        norm = error.abs().pow(p).sum(dim=1)
        better = norm < best_norm
        best[better], best_norm[better] = found[better], norm[better]
        split = _shrink(error + dual, step, p)
        dual = dual + error - split
    return best


def _shrink(values: Tensor, step: Tensor, p: float) -> Tensor:
    """Minimise step * |x|^p + (x - value)^2 / 2 for each entry, by Newton's method from above."""
    size = values.abs()
    if p == 1:
        return values.sign() * (size - step).clamp(min=0)
    found = size
    for _ in range(6):
        power = found.clamp(min=torch.finfo(values.dtype).tiny).pow(p - 2)
        slope = found + step * p * power * found - size
        found = (found - slope / (1 + step * p * (p - 1) * power)).clamp(min=0)
    return values.sign() * found


def _weighted_gram(rows: Rows, weights: Tensor, p: float) -> Tensor:
    """A^T T^(1 - 2/p) A over all processes, shape (dim, dim), float64."""
    gram = torch.zeros(rows.dim, rows.dim, dtype=torch.float64, device=rows.device)
    scales = weights.clamp(min=torch.finfo(torch.float32).tiny).pow(0.5 - 1 / p)
    for span in rows.own_spans():
        scaled = rows.read(span).double() * scales[span].unsqueeze(1)
        gram += scaled.T @ scaled
    return sum_over_processes(gram)


def _inverse_root(gram: Tensor) -> Tensor:
    """A matrix whose product with its transpose is the pseudo-inverse of a Gram matrix, shape (dim, dim)."""
    values, vectors = torch.linalg.eigh(gram)
    kept = values > _CUT_OFF * values[-1]
    return vectors * torch.where(kept, values, 1).rsqrt() * kept
