"""Ranks from a budget: how many coordinates the rows of each cluster may have so that the factors are small enough.

A factored table of width d stores j_i (n_i + d) numbers for a cluster of n_i rows and rank j_i, and n_i d for
one of rank d, whose rows are kept as they are. A rule turns the spectra and sizes of clusters into an allocation:
which coordinates each cluster keeps, and what a row pays for those that a cluster would give it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

_BISECTIONS = 60


@dataclass(frozen=True)
class Allocation:
    """What each cluster keeps of its rows.

    Attributes:
        ranks: Coordinates that each cluster keeps, those of the largest eigenvalues.
        price: Of one number, or byte, that is stored for a row, in units of distance^p.
        row_sizes: Numbers, or bytes, that are stored for a row in each cluster.
        lost: Share of the energy along each eigenvector that is lost, shape (k, dim): 1 beyond the rank.
        per_byte: Coordinates that are stored in one byte, for each coordinate that is kept; None of floating numbers.
    """

    ranks: list[int]
    price: float
    row_sizes: list[int]
    lost: Tensor
    per_byte: list[list[int]] | None = None

    @property
    def tolls(self) -> list[float]:
        """What a row pays for being in each cluster."""
        return [self.price * size for size in self.row_sizes]

    def left(self, residuals: Tensor) -> float:
        """Energy that all clusters lose, of residuals at each rank, shape (k, dim + 1)."""
        energies = residuals[:, :-1] - residuals[:, 1:]
        return float((energies * self.lost.to(energies)).sum())

    def to(self, device: torch.device | str) -> Allocation:
        """The same allocation with its tensor on a device."""
        return replace(self, lost=self.lost.to(device))


RankRule = Callable[[Tensor, list[int]], Allocation]


def whole_numbers(ranks: list[int], dim: int, price: float) -> Allocation:
    """Coordinates that are kept as they are, at a price for each."""
    lost = (torch.arange(dim) >= torch.tensor(ranks).unsqueeze(1)).double()
    return Allocation(ranks, price, ranks, lost)


def equal_ranks(rank: int) -> RankRule:
    """One rank for all clusters, at no price.

    Args:
        rank: The rank, 0 to dim.

    Returns:
        A rule.
    """
    return lambda residuals, sizes: whole_numbers([rank] * len(sizes), residuals.shape[1] - 1, 0.0)


def adaptive_ranks(budget: int) -> RankRule:
    """A rank for each cluster, so that all together leave the least energy that the budget allows.

    Each cluster takes the rank of the least residual + price * stored numbers; the price is found by bisection,
    and what is then left of the budget goes to the clusters that gain most by it.

    Args:
        budget: Numbers that may be stored in all.

    Returns:
        A rule. The numbers that its ranks store are never above the budget.
    """

    def choose(residuals: Tensor, sizes: list[int]) -> Allocation:
        residuals = residuals * (torch.tensor(sizes) > 0).unsqueeze(1)  # rounding leaves some where rows left
        stored = stored_numbers(sizes, residuals.shape[1] - 1).to(residuals)  # (k, dim + 1)
        price = _least_price(residuals, stored, budget)
        ranks = (residuals + price * stored).argmin(dim=1)
        ranks = _spend_the_rest(residuals, stored, ranks, budget)
        return whole_numbers(ranks.tolist(), residuals.shape[1] - 1, price)

    return choose


def stored_numbers(sizes: list[int], dim: int) -> Tensor:
    """Numbers that clusters store at each rank 0 to dim.

    Args:
        sizes: Rows of each cluster, k numbers.
        dim: Width of the table, d.

    Returns:
        Shape (k, dim + 1), int64.
    """
    rows = torch.tensor(sizes).unsqueeze(1)
    stored = torch.arange(dim + 1) * (rows + dim)
    stored[:, dim] = rows[:, 0] * dim
    return stored * (rows > 0)


def uniform_rank(num_rows: int, dim: int, num_clusters: int, compression: float) -> int:
    """The largest rank for which k clusters fit the budget, j (n + k d) <= (1 - compression) n d.

    Args:
        num_rows: Rows of the table, n.
        dim: Width of the table, d.
        num_clusters: Number of clusters, k.
        compression: Share of the table's numbers to save, between 0 and 1.

    Returns:
        The rank j, 1 to dim.

    Raises:
        ValueError: If not even one coordinate a row fits.
    """
    budget = number_budget(num_rows, dim, compression)
    cost_of_one = num_rows + num_clusters * dim
    rank = min(budget // cost_of_one, dim)
    if rank < 1:
        limit = math.floor((1 - cost_of_one / (num_rows * dim)) * 1000) / 1000
        way_out = (
            f"use compression <= {limit} or fewer clusters"
            if limit > 0
            else f"use fewer clusters than {num_clusters}, or leave a table this small as it is"
            if num_clusters > 1
            else "leave a table this small as it is"
        )
        raise ValueError(
            f"compression={compression} leaves {budget:,} numbers for a table of {num_rows:,} x {dim}; expected "
            f"at least {cost_of_one:,}, one coordinate for each token and one basis vector for each of "
            f"{num_clusters} clusters: {way_out}."
        )
    return rank


def number_budget(num_rows: int, dim: int, compression: float) -> int:
    """Numbers that a table of n rows and width d may store when a share of them is saved."""
    return num_rows * dim - math.ceil(compression * num_rows * dim - 1e-6)


def _least_price(residuals: Tensor, stored: Tensor, budget: int) -> float:
    """The least price at which what the clusters take fits the budget, found on a logarithmic scale."""
    energy = float(residuals[:, 0].sum())
    if energy <= 0:
        return 0.0
    low, high = energy * 1e-18, energy  # at a price of all its energy a cluster takes rank 0
    for _ in range(_BISECTIONS):
        middle = (low * high) ** 0.5
        taken = (residuals + middle * stored).argmin(dim=1, keepdim=True)
        if int(stored.gather(1, taken).sum()) <= budget:
            high = middle
        else:
            low = middle
    return high


def _spend_the_rest(residuals: Tensor, stored: Tensor, ranks: Tensor, budget: int) -> Tensor:
    """Raise ranks, the one that gains most a stored number first, until none fits the budget any more."""
    ranks = ranks.clone()
    while True:
        now = ranks.unsqueeze(1)
        more = stored - stored.gather(1, now)  # (k, dim + 1)
        gain = residuals.gather(1, now) - residuals
        left = budget - int(stored.gather(1, now).sum())
        rate = torch.where((more > 0) & (more <= left), gain / more.clamp(min=1), 0)
        best = int(rate.argmax())
        if float(rate.flatten()[best]) <= 0:
            return ranks
        ranks[best // rate.shape[1]] = best % rate.shape[1]
