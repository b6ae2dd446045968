"""Projective clustering: k linear subspaces of one rank, each row in the nearest (Lloyd's rounds).

``messi`` is the method of "Deep Learning Meets Projective Clustering" (arXiv 2010.04290, section 3): start from
a random equal split, fit a subspace to each cluster, move each row to the nearest subspace, and repeat. Here
the fit goes through Gram matrices, several starts race for a few rounds and the best one is finished.
``svd`` is the same problem with one cluster. Ranks that differ by cluster and weighted rows are not done here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .subspaces import Subspace, fit_subspace, squared_distances

RACE_ROUNDS = 2


@dataclass(frozen=True)
class ProjectiveClustering:
    """A clustering of rows by the subspaces they lie in.

    Attributes:
        assignment: Cluster of each row, shape (n,), int64.
        bases: Orthonormal basis of each cluster, k of shape (rank, dim).
        cost: Sum of squared distances of the rows from the subspaces of their clusters.
        costs: The cost after each round of the start that won; it never rises.
    """

    assignment: Tensor
    bases: list[Tensor]
    cost: float
    costs: list[float]


def svd(table: Tensor, *, rank: int) -> ProjectiveClustering:
    """Fit one subspace to all rows: the truncated singular value decomposition.

    Args:
        table: Rows, shape (n, dim), finite.
        rank: Dimension of the subspace, 1 to dim.

    Returns:
        The clustering, with one cluster.
    """
    return messi(table, num_clusters=1, rank=rank, num_starts=1)


def messi(
    table: Tensor,
    *,
    num_clusters: int,
    rank: int,
    seed: int = 0,
    num_starts: int = 4,
    max_rounds: int = 100,
    tolerance: float = 1e-5,
    on_round: Callable[[float], None] | None = None,
) -> ProjectiveClustering:
    """Cluster rows by linear subspaces of one rank (arXiv 2010.04290).

    Args:
        table: Rows, shape (n, dim), finite, of any floating dtype; float64 is computed in float64, others in
            float32.
        num_clusters: Number of subspaces, k, 1 to n.
        rank: Dimension of each subspace, j, 1 to dim.
        seed: Seed of the random splits. Equal arguments on one machine give equal results.
        num_starts: Random splits that race for a few rounds; the best one is finished.
        max_rounds: Rounds of the start that is finished, at most.
        tolerance: Stop when a round lowers the cost by a smaller share than this.
        on_round: Called after each round of any start, with its cost.

    Returns:
        The clustering; every cluster has at least one row.
    """
    rows = table.detach().to(torch.float64 if table.dtype == torch.float64 else torch.float32)
    generator = torch.Generator().manual_seed(seed)
    runs = [
        _Run(rows, rank, _equal_split(len(rows), num_clusters, generator).to(rows.device), on_round)
        for _ in range(num_starts if num_clusters > 1 else 1)
    ]
    if len(runs) > 1:
        for run in runs:
            run.advance(RACE_ROUNDS, tolerance)
    best = min(runs, key=lambda run: run.costs[-1])
    best.advance(max_rounds - len(best.costs), tolerance)
    return ProjectiveClustering(
        assignment=best.assignment,
        bases=[subspace.basis for subspace in best.subspaces],
        cost=best.costs[-1],
        costs=best.costs,
    )


@dataclass
class _Run:
    """Lloyd's rounds from one start. ``costs`` begins with the fit to the start itself."""

    rows: Tensor
    rank: int
    assignment: Tensor
    on_round: Callable[[float], None] | None
    subspaces: list[Subspace] = field(default_factory=list)
    costs: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.squared_norms = self.rows.square().sum(dim=1)
        self.num_clusters = int(self.assignment.max()) + 1
        self.finished = False
        self._accept(self.assignment, self._fit(self.assignment))

    def advance(self, num_rounds: int, tolerance: float) -> None:
        """Do rounds until the cost falls by less than ``tolerance``, keeping the best state seen."""
        for _ in range(num_rounds):
            if self.finished:
                return
            assignment = self._assign()
            subspaces = self._fit(assignment)
            cost = sum(subspace.residual for subspace in subspaces)
            previous = self.costs[-1]
            self.finished = cost >= previous * (1 - tolerance)
            if cost < previous:
                self._accept(assignment, subspaces)

    def _accept(self, assignment: Tensor, subspaces: list[Subspace]) -> None:
        self.assignment, self.subspaces = assignment, subspaces
        self.costs.append(sum(subspace.residual for subspace in subspaces))
        if self.on_round is not None:
            self.on_round(self.costs[-1])

    def _fit(self, assignment: Tensor) -> list[Subspace]:
        return [fit_subspace(self.rows[assignment == i], self.rank) for i in range(self.num_clusters)]

    def _assign(self) -> Tensor:
        """Move each row to the nearest subspace; then fill empty clusters with the rows that fit worst."""
        distances = torch.stack(
            [squared_distances(self.rows, self.squared_norms, subspace) for subspace in self.subspaces]
        )  # (k, n)
        nearest, assignment = distances.min(dim=0)  # (n,)
        return fill_empty_clusters(assignment, nearest, self.num_clusters, self.rank)


def fill_empty_clusters(assignment: Tensor, distances: Tensor, num_clusters: int, rank: int) -> Tensor:
    """Move the rows that fit worst into the clusters that have none.

    A cluster of at most ``rank`` rows fits them exactly, so that the cost cannot rise. The row that fits best in
    each cluster stays, so that none is emptied to fill another.

    Args:
        assignment: Cluster of each row, shape (n,), n >= num_clusters.
        distances: Squared distance of each row from the subspace of its cluster, shape (n,).
        num_clusters: Number of clusters, k.
        rank: Rows that an empty cluster gets, at most.

    Returns:
        An assignment without empty clusters, shape (n,).
    """
    assignment, distances = assignment.clone(), distances.clone()
    counts = torch.bincount(assignment, minlength=num_clusters)
    for empty in (counts == 0).nonzero().flatten().tolist():
        order = distances.argsort(descending=True)
        movable = order[_is_not_last_of_its_cluster(assignment[order])]
        moved = movable[: max(1, min(rank, len(movable) // num_clusters))]
        assignment[moved], distances[moved] = empty, 0
    return assignment


def _equal_split(num_rows: int, num_clusters: int, generator: torch.Generator) -> Tensor:
    """Assign rows to clusters of equal size, at random."""
    return torch.randperm(num_rows, generator=generator) % num_clusters


def _is_not_last_of_its_cluster(clusters: Tensor) -> Tensor:
    """Mark every place but the last at which each cluster occurs, shape (n,)."""
    backwards = clusters.flip(0)
    order = backwards.argsort(stable=True)
    first = torch.ones_like(backwards, dtype=torch.bool)
    first[order[1:]] = backwards[order[1:]] != backwards[order[:-1]]
    return ~first.flip(0)
