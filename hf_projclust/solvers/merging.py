"""Fewer clusters from more: merge, one after another, the two whose union costs least.

A union needs no rows: the outer products of two clusters add up. Rounds from many clusters that were merged end
lower than rounds from few, since a cluster that spans two kinds of rows rarely splits up by itself.
"""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor

from .ranks import RankRule


def merge_clusters(grams: Tensor, sizes: list[int], num_clusters: int, rule: RankRule) -> Tensor:
    """Merge clusters until there are as few as asked for.

    Args:
        grams: Sum of outer products of the rows of each cluster, shape (k, dim, dim), float64.
        sizes: Rows of each cluster; those without any are merged into others at no cost.
        num_clusters: Number of clusters to end with.
        rule: Ranks of clusters, and so their cost.

    Returns:
        New cluster of each old one, shape (k,), int64, from 0 to at most ``num_clusters`` - 1.
    """
    members = [[number] for number, size in enumerate(sizes) if size > 0]
    residuals: dict[tuple[int, ...], Tensor] = {(number,): _residuals(grams[number]) for [number] in members}
    while len(members) > num_clusters:
        unions = {}
        for left, right in combinations(members, 2):
            union = tuple(left + right)
            if union not in residuals:
                residuals[union] = _residuals(grams[list(union)].sum(dim=0))
            others = [group for group in members if group is not left and group is not right]
            unions[union] = (_cost([*others, list(union)], residuals, sizes, rule), others)
        best = min(unions, key=lambda union: unions[union][0])
        members = [*unions[best][1], list(best)]
    merged = torch.zeros(len(sizes), dtype=torch.int64)
    for number, group in enumerate(members):
        merged[group] = number
    return merged


def _residuals(gram: Tensor) -> Tensor:
    """Energy that a cluster leaves at each rank, shape (dim + 1,), on the CPU."""
    values = torch.linalg.eigvalsh(gram).clamp(min=0)  # ascending
    return torch.cat([values.new_zeros(1), values.cumsum(0)]).flip(0).cpu()


def _cost(
    members: list[list[int]], residuals: dict[tuple[int, ...], Tensor], sizes: list[int], rule: RankRule
) -> float:
    left = torch.stack([residuals[tuple(group)] for group in members])  # (k, dim + 1)
    return rule(left, [sum(sizes[number] for number in group) for group in members]).left(left)
