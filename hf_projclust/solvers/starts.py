"""Where the rounds of a projective clustering begin: a few guesses, of which the best after a race is kept.

The paper begins with a random split (arXiv 2010.04290). Bands of rows by norm are better on vocabulary tables,
whose rows differ most by how often their tokens are used; neighbourhoods of rows that fit badly (as in k-means++,
Arthur and Vassilvitskii 2007) find subspaces that differ by direction alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .ranks import whole_numbers
from .rounds import Fit
from .rows import Rows
from .subspaces import spectrum, squared_distances

SAMPLE_ROWS = 8192


def norm_bands(norms: Tensor, num_clusters: int) -> Tensor:
    """Split rows into clusters of equal size by their norm.

    Args:
        norms: Norm of each row, shape (n,).
        num_clusters: Number of clusters, k.

    Returns:
        Cluster of each row, shape (n,), int64.
    """
    assignment = torch.empty(len(norms), dtype=torch.int64, device=norms.device)
    places = torch.arange(len(norms), device=norms.device)
    assignment[norms.argsort(stable=True)] = places * num_clusters // len(norms)
    return assignment


def random_split(num_rows: int, num_clusters: int, generator: torch.Generator) -> Tensor:
    """Split rows into clusters of equal size at random, as the paper does.

    Args:
        num_rows: Number of rows, n.
        num_clusters: Number of clusters, k.
        generator: Source of randomness, on the CPU.

    Returns:
        Cluster of each row, shape (n,), int64.
    """
    return torch.randperm(num_rows, generator=generator) % num_clusters


def neighbourhoods(rows: Rows, num_clusters: int, rank: int, generator: torch.Generator) -> Fit:
    """Span each subspace by the rows that point most nearly along one that no subspace before it fits.

    Such a row is drawn with a probability in proportion to its squared distance, from a sample of the table.

    Args:
        rows: The table.
        num_clusters: Number of subspaces, k.
        rank: Dimension of each subspace.
        generator: Source of randomness, on the CPU.

    Returns:
        The subspaces, to which no row is assigned yet.
    """
    indices = torch.randperm(rows.num_rows, generator=generator)[:SAMPLE_ROWS]
    sample = rows.take(indices)  # (s, d)
    norms = rows.norms[indices].clamp(min=torch.finfo(sample.dtype).tiny)
    distances, found = norms.square(), []
    for _ in range(num_clusters):
        chances = distances.double().cpu() + torch.finfo(torch.float32).tiny
        seed = int(torch.multinomial(chances, 1, generator=generator))
        alignment = (sample @ sample[seed]).abs() / norms  # (s,)
        near = sample[alignment.topk(min(2 * rank, len(sample))).indices]
        vectors = spectrum((near.T @ near).double().unsqueeze(0), sample.dtype).vectors
        found.append(vectors)
        distances = torch.minimum(
            distances, squared_distances(sample, vectors, whole_numbers([rank], rows.dim, 0.0))[:, 0]
        )
    nowhere = torch.full((rows.num_rows,), -1, device=rows.device)
    return Fit(nowhere, torch.cat(found), whole_numbers([rank] * num_clusters, rows.dim, 0.0), cost=float("inf"))
