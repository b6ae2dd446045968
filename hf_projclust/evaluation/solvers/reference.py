"""What the solvers are compared with: a plain version of the procedure that MESSI was published with.

"Deep Learning Meets Projective Clustering" (arXiv 2010.04290, section 3): a random split, then rounds of nearest
subspaces and singular value decompositions, from several starts. Slow and plain on purpose, it shares no code with
the solvers; to compress a model, use those.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def reference_messi(
    table: Tensor,
    *,
    num_clusters: int,
    rank: int,
    num_restarts: int = 10,
    num_rounds: int = 10,
    seed: int = 0,
    on_round: Callable[[float], None] | None = None,
) -> tuple[float, Tensor, list[Tensor]]:
    """Cluster rows by linear subspaces of one rank, in float64, by a fixed number of rounds.

    Each restart splits the rows at random into clusters of equal size and fits a subspace to each. A round then
    moves every row to the nearest subspace and fits the subspaces again. An empty cluster keeps its last subspace.

    Args:
        table: Rows, shape (n, dim), finite.
        num_clusters: Number of subspaces, k, 1 to n.
        rank: Dimension of each subspace, 0 to dim.
        num_restarts: Random splits that are tried; the one of the least cost is kept.
        num_rounds: Rounds of each restart.
        seed: Seed of the random splits.
        on_round: Called after each round with its cost.

    Returns:
        The cost, which is the sum of squared distances of the rows from the subspaces of their clusters; the cluster
        of each row, shape (n,), int64; and an orthonormal basis of each cluster, k of shape (rank, dim).

    Raises:
        ValueError: If there are more clusters than rows, or the rank is more than the width.
    """
    n, dim = table.shape
    if not (1 <= num_clusters <= n and 0 <= rank <= dim):
        raise ValueError(
            f"num_clusters={num_clusters} and rank={rank} for a table of {n:,} x {dim}; expected 1 to {n:,} clusters "
            f"and a rank of 0 to {dim}. Use fewer clusters, or a smaller rank."
        )
    rows = table.detach().double()
    generator = torch.Generator().manual_seed(seed)
    best: tuple[float, Tensor, list[Tensor]] = (float("inf"), torch.empty(0), [])
    for _ in range(num_restarts):
        assignment = (torch.randperm(n, generator=generator) % num_clusters).to(rows.device)  # (n,)
        vectors = [torch.eye(dim).to(rows)] * num_clusters  # k of (dim, dim)
        cost = _fit(rows, assignment, rank, vectors)
        for _ in range(num_rounds):
            null_spaces = [orthonormal[rank:] for orthonormal in vectors]  # k of (dim - rank, dim)
            distances = torch.stack([(rows @ null.T).square().sum(dim=1) for null in null_spaces], dim=1)  # (n, k)
            assignment = distances.argmin(dim=1)
            cost = _fit(rows, assignment, rank, vectors)
            if on_round is not None:
                on_round(cost)
        if cost < best[0]:
            best = (cost, assignment, [orthonormal[:rank] for orthonormal in vectors])
    return best


def _fit(rows: Tensor, assignment: Tensor, rank: int, vectors: list[Tensor]) -> float:
    """Put the right singular vectors of each cluster into the list, shape (dim, dim) each, and add up what is left."""
    cost = 0.0
    for cluster in range(len(vectors)):
        members = rows[assignment == cluster]  # (m, dim)
        if len(members):
            # Fewer rows than columns need the full matrices, since the null space is among them.
            is_wide = members.shape[0] < members.shape[1]
            _, values, vectors[cluster] = torch.linalg.svd(members, full_matrices=is_wide)
            cost += float(values[rank:].square().sum())
    return cost
