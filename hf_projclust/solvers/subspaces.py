"""One subspace: the best one for given rows, and how far rows lie from it.

The best linear subspace of rank j for rows A (n, d) is spanned by the top j eigenvectors of the Gram matrix
A^T A (d, d), and what it leaves is the sum of the other eigenvalues. So a fit costs one product and one
eigendecomposition of size d, whatever n is. How rows are clustered is not decided here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Subspace:
    """A linear subspace and its orthogonal complement.

    Attributes:
        basis: Orthonormal rows that span the subspace, shape (rank, dim).
        complement: Orthonormal rows that span the rest, shape (dim - rank, dim).
        residual: Squared distance of the fitted rows from the subspace, summed over the rows.
    """

    basis: Tensor
    complement: Tensor
    residual: float


def fit_subspace(rows: Tensor, rank: int) -> Subspace:
    """Find the linear subspace of given rank with the least sum of squared distances from the rows.

    Args:
        rows: Shape (n, dim), floating point; n may be smaller than the rank, and 0.
        rank: Dimension of the subspace, 0 to dim.

    Returns:
        The subspace, in the dtype of the rows.
    """
    gram = (rows.T @ rows).double()  # (n, dim) -> (dim, dim)
    eigenvalues, eigenvectors = torch.linalg.eigh(gram)  # ascending
    num_left = gram.shape[0] - rank
    vectors = eigenvectors.T.to(rows.dtype)
    return Subspace(
        basis=vectors[num_left:].flip(0).contiguous(),
        complement=vectors[:num_left].contiguous(),
        residual=float(eigenvalues[:num_left].clamp(min=0).sum()),
    )


def squared_distances(rows: Tensor, squared_norms: Tensor, subspace: Subspace) -> Tensor:
    """Squared distance of each row from a subspace, by whichever of basis and complement is smaller.

    Args:
        rows: Shape (n, dim).
        squared_norms: Squared norm of each row, shape (n,).
        subspace: The subspace.

    Returns:
        Squared distances, shape (n,), never negative.
    """
    if len(subspace.complement) <= len(subspace.basis):
        return (rows @ subspace.complement.T).square().sum(dim=1)
    return (squared_norms - (rows @ subspace.basis.T).square().sum(dim=1)).clamp(min=0)
