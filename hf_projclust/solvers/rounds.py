"""Lloyd's rounds of a projective clustering, from one start: assign each row, refit each subspace, repeat.

A round is one pass over the rows, one sum over processes, and k eigendecompositions. A row goes to the cluster
of the least distance^p + price * (numbers or bytes of a row there); a cluster is then refitted from the sum of outer
products of its rows. With p = 2 only the rows that moved change these sums. With p < 2 each row counts by its
distance^(p - 2), which is iteratively reweighted least squares: outlying rows lose their pull (arXiv 2009.05647
minimises such norms).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .empty_clusters import fill_empty_clusters
from .ranks import Allocation, RankRule
from .rows import Rows, sum_over_processes
from .subspaces import spectrum, squared_distances

PATIENCE = 3
_LEAST_DISTANCE = 1e-3  # of the mean norm: nearer rows count no more than this in a reweighted fit


@dataclass(frozen=True)
class Fit:
    """Clusters, the subspaces fitted to them, and what these leave.

    Attributes:
        assignment: Cluster of each row, shape (n,), int64; of this process's rows where several share them.
        vectors: Orthonormal rows, of which the first ``rank`` span each subspace, shape (k, dim, dim).
        allocation: What each cluster keeps along them, and what a row pays for it.
        cost: Sum of distance^p of the rows from the subspaces of their clusters; for p < 2 an upper bound of it.
    """

    assignment: Tensor
    vectors: Tensor
    allocation: Allocation
    cost: float

    @property
    def ranks(self) -> list[int]:
        """Dimension of each subspace."""
        return self.allocation.ranks

    def to(self, device: torch.device | str) -> Fit:
        """The same fit with its tensors on a device."""
        return Fit(self.assignment.to(device), self.vectors.to(device), self.allocation.to(device), self.cost)

    def state(self) -> dict[str, Any]:
        """The fields, as lists, numbers and tensors on the CPU."""
        return {**vars(self.to("cpu")), "allocation": vars(self.allocation.to("cpu"))}

    @staticmethod
    def from_state(state: dict[str, Any]) -> Fit:
        """The fit whose ``state`` this was."""
        return Fit(**{**state, "allocation": Allocation(**state["allocation"])})


class Run:
    """Rounds from one start, or from where an earlier run was saved.

    Args:
        rows: The table.
        name: What the run is called where it is saved.
        num_clusters: Number of clusters, k.
        rule: Ranks of clusters from their residuals and sizes.
        p: Power of the distance that is summed, in [1, 2].
        start: Cluster of each row, shape (n,), or subspaces to assign the rows to; absent if ``saved`` is given.
        saved: What ``state`` gave; the run goes on as if it had not been interrupted, up to rounding.

    Attributes:
        current: The fit after the last round.
        best: The fit of the least cost so far.
        costs: The cost after each round. With equal ranks and p = 2 it never rises.
        is_finished: Whether another round would gain nothing.
    """

    def __init__(
        self,
        rows: Rows,
        name: str,
        num_clusters: int,
        rule: RankRule,
        p: float,
        *,
        start: Tensor | Fit | None = None,
        saved: dict[str, Any] | None = None,
    ) -> None:
        """Fit the start, which is not a round yet, or take up the saved state."""
        self.rows, self.name, self.num_clusters, self.rule, self.p = rows, name, num_clusters, rule, p
        self.sums = _Sums(num_clusters, rows)
        self.assignment = torch.full((rows.num_rows,), -1, device=rows.device)
        self.distances = torch.zeros(rows.num_rows, dtype=rows.dtype, device=rows.device)
        self.costs: list[float] = []
        self.stalled, self.num_moved, self.is_finished = 0, 0, False
        if saved is not None:
            self.current, self.best = (Fit.from_state(saved[name]).to(rows.device) for name in ("current", "best"))
            self.costs, self.stalled = list(saved["costs"]), saved["stalled"]
            self.is_finished = saved["is_finished"]
            return
        if isinstance(start, Tensor):
            given = start.to(rows.device)
            self.current = self._pass(lambda span, block: (given[span], block.square().sum(dim=1)))
        elif start is not None:
            self.current = self._pass(self._nearest_to(start))
        self.best = self.current

    def state(self) -> dict[str, Any]:
        """All that a run needs to go on: tensors on the CPU, lists and numbers."""
        current, best = (
            replace(fit, assignment=whole(self.rows, fit.assignment)).state() for fit in (self.current, self.best)
        )
        return {
            "current": current,
            "best": best,
            "costs": self.costs,
            "stalled": self.stalled,
            "is_finished": self.is_finished,
        }

    def advance(self, num_rounds: int, tolerance: float, after_round: Callable[[Run], None] | None = None) -> None:
        """Do rounds, at most as many as given, until several in a row gain nearly nothing.

        Args:
            num_rounds: Rounds to do, at most.
            tolerance: A round that lowers the least cost by a smaller share than this gains nothing.
            after_round: Called after each round, with this run.
        """
        for _ in range(num_rounds):
            if self.is_finished:
                return
            least = self.best.cost
            self.current = self._pass(self._nearest_to(self.current), self.current.assignment)
            self.costs.append(self.current.cost)
            self.stalled = 0 if self.current.cost < least * (1 - tolerance) else self.stalled + 1
            if self.current.cost < least:
                self.best = self.current
            self.is_finished = self.stalled >= PATIENCE or (self.num_moved == 0 and self.p == 2)
            if after_round is not None:
                after_round(self)

    def _nearest_to(self, fit: Fit) -> Callable[[slice, Tensor], tuple[Tensor, Tensor]]:
        """A choice of the cluster of each row of a block, with its squared distance, both of shape (rows,)."""
        toll = torch.tensor(fit.allocation.tolls, dtype=self.rows.dtype, device=self.rows.device)  # (k,)

        def choose(_: slice, block: Tensor) -> tuple[Tensor, Tensor]:
            distances = squared_distances(block, fit.vectors, fit.allocation)  # (rows, k)
            chosen = (distances.pow(self.p / 2) + toll).argmin(dim=1)
            return chosen, distances.gather(1, chosen.unsqueeze(1)).squeeze(1)

        return choose

    def _pass(self, choose: Callable[[slice, Tensor], tuple[Tensor, Tensor]], before: Tensor | None = None) -> Fit:
        """Assign all rows, and fit the subspaces to the clusters that this makes."""
        changes = _Sums(self.num_clusters, self.rows)
        assignment = self.assignment.clone()
        for span in self.rows.own_spans():
            block = self.rows.read(span)
            chosen, distances = choose(span, block)
            if self.p == 2:
                changes.move(block, assignment[span], chosen)
            else:
                changes.add(block * self._pull(distances).unsqueeze(1), chosen)
                changes.cost += distances.double().clamp(min=self._least()).pow(self.p / 2).sum()
            if before is not None:
                changes.moved += (before[span] != chosen).sum()
            assignment[span], self.distances[span] = chosen, distances
        sum_over_processes(changes.numbers)
        self.num_moved = int(changes.moved)
        self.assignment = assignment
        if self.p == 2:
            self.sums.numbers += changes.numbers
        else:
            self.sums = changes
        return self._fit()

    def _pull(self, distances: Tensor) -> Tensor:
        """Root of the weight of each row in a reweighted fit, distance^(p - 2), shape (rows,)."""
        return distances.clamp(min=self._least()).pow((self.p - 2) / 4)

    def _least(self) -> float:
        """The squared distance below which rows count no more in a reweighted fit."""
        return max((_LEAST_DISTANCE * float(self.rows.norms.mean())) ** 2, torch.finfo(self.rows.dtype).tiny)

    def _fit(self) -> Fit:
        found = spectrum(self.sums.grams, self.rows.dtype)
        residuals, sizes = found.residuals().cpu(), [int(size) for size in self.sums.sizes]
        allocation = self.rule(residuals, sizes)
        is_wasted = any(size == 0 and rank > 0 for size, rank in zip(sizes, allocation.ranks, strict=True))
        if is_wasted and self._fill(max(allocation.ranks)):
            return self._fit()
        left = allocation.left(residuals)
        cost = self.p / 2 * left + (1 - self.p / 2) * float(self.sums.cost)
        return Fit(self.assignment, found.vectors, allocation, cost)

    def _fill(self, rank: int) -> bool:
        """Move the rows that fit worst into clusters that have none; whether any was moved."""
        before = whole(self.rows, self.assignment)
        distances = whole(self.rows, self.distances)
        self.assignment = fill_empty_clusters(before, distances, self.num_clusters, rank)
        moved = (self.assignment != before).nonzero().flatten()
        pull = self._pull(distances[moved]) if self.p < 2 else torch.ones_like(distances[moved])
        self.sums.move(self.rows.take(moved) * pull.unsqueeze(1), before[moved], self.assignment[moved])
        return len(moved) > 0


class _Sums:
    """What is added up over rows, in one tensor that one all-reduce completes.

    Attributes:
        numbers: All of it, float64.
        grams: Sum of outer products of the rows of each cluster, shape (k, dim, dim).
        sizes: Number of rows of each cluster, shape (k,).
        cost: Sum of distance^p, shape (1,); 0 for p = 2, where the spectra give it.
        moved: Number of rows that changed their cluster, shape (1,).
    """

    def __init__(self, num_clusters: int, rows: Rows) -> None:
        shape = (num_clusters, rows.dim, rows.dim)
        counts = [num_clusters * rows.dim**2, num_clusters, 1, 1]
        self.numbers = torch.zeros(sum(counts), dtype=torch.float64, device=rows.device)
        grams, self.sizes, self.cost, self.moved = self.numbers.split(counts)
        self.grams = grams.view(shape)

    def add(self, block: Tensor, clusters: Tensor, sign: int = 1) -> None:
        """Add the rows of a block to the sums of their clusters; a cluster below 0 is none."""
        for cluster in range(len(self.sizes)):
            members = block[clusters == cluster]
            if len(members):
                self.grams[cluster] += sign * (members.T @ members)
                self.sizes[cluster] += sign * len(members)

    def move(self, block: Tensor, before: Tensor, after: Tensor) -> None:
        """Take the rows that change their cluster from the sums of the old one to those of the new one."""
        moved = before != after
        self.add(block[moved], before[moved], sign=-1)
        self.add(block[moved], after[moved])


def whole(rows: Rows, own: Tensor) -> Tensor:
    """Complete a tensor of one entry a row, shape (n,), of which each process knows the entries of its own rows."""
    known = torch.zeros_like(own)
    for span in rows.own_spans():
        known[span] = own[span]
    return sum_over_processes(known)
