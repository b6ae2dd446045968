"""Clusters that lost all their rows, while ranks are paid for: they begin again from the rows that fit worst."""

from __future__ import annotations

import torch
from torch import Tensor


def fill_empty_clusters(assignment: Tensor, distances: Tensor, num_clusters: int, rank: int) -> Tensor:
    """Move the rows that fit worst into the clusters that have none.

    A cluster of at most ``rank`` rows fits them exactly, so that the cost cannot rise. The row that fits best in
    each cluster stays, so that none is emptied to fill another.

    Args:
        assignment: Cluster of each row, shape (n,).
        distances: Squared distance of each row from the subspace of its cluster, shape (n,).
        num_clusters: Number of clusters, k.
        rank: Rows that an empty cluster gets, at most.

    Returns:
        An assignment without empty clusters, shape (n,), where there are as many rows.
    """
    assignment, distances = assignment.clone(), distances.clone()
    counts = torch.bincount(assignment, minlength=num_clusters)
    for empty in (counts == 0).nonzero().flatten().tolist():
        order = distances.argsort(descending=True)
        movable = order[_is_not_last_of_its_cluster(assignment[order])]
        moved = movable[: max(1, min(rank, len(movable) // num_clusters))]
        assignment[moved], distances[moved] = empty, 0
    return assignment


def _is_not_last_of_its_cluster(clusters: Tensor) -> Tensor:
    """Mark every place but the last at which each cluster occurs, shape (n,)."""
    backwards = clusters.flip(0)
    order = backwards.argsort(stable=True)
    first = torch.ones_like(backwards, dtype=torch.bool)
    first[order[1:]] = backwards[order[1:]] != backwards[order[:-1]]
    return ~first.flip(0)
