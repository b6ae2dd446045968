"""Subspaces of clusters: the best ones for given sums, and how far rows lie from them.

The best linear subspace of rank j for rows A (n, d) is spanned by the top j eigenvectors of the Gram matrix
A^T A (d, d), and what it leaves is the sum of the other eigenvalues. So a fit needs no rows, only their sum of
outer products, and costs one eigendecomposition of size d, whatever n is. How rows are clustered, and which
rank each cluster gets, is not decided here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .ranks import Allocation


@dataclass(frozen=True)
class Spectrum:
    """The eigenvectors of the Gram matrices of k clusters, by falling eigenvalue.

    Attributes:
        eigenvalues: Energy along each eigenvector, never negative, shape (k, dim), float64.
        vectors: Orthonormal rows, shape (k, dim, dim), in the dtype that distances are computed in.
    """

    eigenvalues: Tensor
    vectors: Tensor

    def residuals(self) -> Tensor:
        """Energy that each cluster leaves at each rank 0 to dim, shape (k, dim + 1), float64."""
        left = self.eigenvalues.flip(1).cumsum(1).flip(1)  # (k, dim)
        return torch.cat([left, left.new_zeros(len(left), 1)], dim=1)


def spectrum(grams: Tensor, dtype: torch.dtype) -> Spectrum:
    """Decompose Gram matrices.

    Args:
        grams: Sums of outer products of rows, shape (k, dim, dim), float64.
        dtype: Dtype of the eigenvectors.

    Returns:
        Eigenvalues and eigenvectors of each.
    """
    decomposed = [torch.linalg.eigh(gram) for gram in grams]  # ascending
    return Spectrum(
        eigenvalues=torch.stack([values.flip(0).clamp(min=0) for values, _ in decomposed]),
        vectors=torch.stack([vectors.T.flip(0) for _, vectors in decomposed]).to(dtype),
    )


def squared_distances(rows: Tensor, vectors: Tensor, allocation: Allocation) -> Tensor:
    """Squared distance of each row from what each cluster would keep of it.

    Of floating numbers it is the distance from a subspace, by whichever of basis and complement is smaller; in few bits
    each coordinate loses a share of its energy, as it does on average.

    Args:
        rows: Shape (n, dim).
        vectors: Orthonormal rows, of which the first ``rank`` span the subspace, shape (k, dim, dim).
        allocation: What each cluster keeps.

    Returns:
        Squared distances, shape (n, k), never negative.
    """
    dim = rows.shape[1]
    squared_norms = rows.square().sum(dim=1)  # (n,)
    found = []
    for number, (orthonormal, rank) in enumerate(zip(vectors, allocation.ranks, strict=True)):
        if allocation.per_byte is not None:
            kept = (1 - allocation.lost[number, :rank]).to(rows)
            found.append((squared_norms - (rows @ orthonormal[:rank].T).square() @ kept).clamp(min=0))
        elif dim - rank <= rank:
            found.append((rows @ orthonormal[rank:].T).square().sum(dim=1))
        else:
            found.append((squared_norms - (rows @ orthonormal[:rank].T).square().sum(dim=1)).clamp(min=0))
    return torch.stack(found, dim=1)
