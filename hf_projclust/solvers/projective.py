"""Projective clustering: k linear subspaces, each row in one of them, from a race of starts to a finish.

The method of "Deep Learning Meets Projective Clustering" (arXiv 2010.04290, section 3), with ranks that may
differ by cluster, weighted rows, a robust power of the distance, and a number of clusters that may be chosen.
One cluster is the truncated singular value decomposition. Rounds are in ``rounds``, starts in ``starts``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .checkpoints import Checkpoint
from .merging import merge_clusters
from .ranks import RankRule
from .robust import lewis_fit
from .rounds import Fit, Run, whole
from .rows import Rows
from .starts import neighbourhoods, norm_bands, random_split

RACE_ROUNDS = 3
SURPLUS = 2
SURPLUS_ROUNDS = 3
MOST_MERGED = 16  # merging takes time in k^3, and gains little where clusters are many


@dataclass(frozen=True)
class ProjectiveClustering:
    """A clustering of rows by the subspaces they lie in.

    Attributes:
        assignment: Cluster of each row, shape (n,), int64.
        bases: Orthonormal basis of each cluster, k of shape (rank, dim).
        per_byte: Coordinates that a byte stands for, for each coordinate of each cluster; None of floating numbers.
        cost: Sum of distance^p of the rows from the subspaces of their clusters; for p < 2 an upper bound of it.
        costs: The cost after each round of the start that won.
    """

    assignment: Tensor
    bases: list[Tensor]
    cost: float
    costs: list[float]
    per_byte: list[list[int]] | None = None


def cluster(
    rows: Rows,
    *,
    num_clusters: int | Sequence[int],
    rule: Callable[[int], RankRule],
    final_rule: RankRule | None = None,
    p: float = 2.0,
    seed: int = 0,
    num_starts: int = 2,
    max_rounds: int = 100,
    tolerance: float = 3e-4,
    on_round: Callable[[float], None] | None = None,
    checkpoint: Checkpoint | None = None,
) -> ProjectiveClustering:
    """Cluster rows by linear subspaces.

    Args:
        rows: The table, finite.
        num_clusters: Number of subspaces, k, 1 to n; or several numbers, which race in turn until one is no better
            than the one before it.
        rule: The rule of ranks for each number of clusters, see ``ranks``.
        final_rule: The rule by which the best start of each number of clusters goes on, if it is another one.
        p: Power of the distance that is summed, in [1, 2].
        seed: Seed of the random starts. Equal arguments on one machine give equal results.
        num_starts: Starts that race for a few rounds; the best one is finished. The first splits rows by their
            norm; then neighbourhoods of random rows and random splits take turns. Each begins with twice as many
            clusters, up to 32, which are merged after a few rounds.
        max_rounds: Rounds of a start, at most.
        tolerance: Stop when several rounds in a row lower the cost by a smaller share than this.
        on_round: Called after each round, with the least cost of its start so far; infinity before its clusters are
            merged.
        checkpoint: Where runs are saved after each round, and taken up again.

    Returns:
        The clustering. Clusters that no row is in are left out.
    """
    counts = [num_clusters] if isinstance(num_clusters, int) else num_clusters
    search = _Search(rows, rule, final_rule, p, seed, num_starts, max_rounds, tolerance, on_round, checkpoint)
    winner = search.race(counts[0])
    for k in counts[1:]:
        run = search.race(k)
        if run.best.cost >= winner.best.cost:
            break
        winner = run
    search.advance(winner, max_rounds)
    return _clustering(rows, winner)


@dataclass(frozen=True)
class _Search:
    """What all runs of a search share; the fields are the arguments of ``cluster``."""

    rows: Rows
    rule: Callable[[int], RankRule]
    final_rule: RankRule | None
    p: float
    seed: int
    num_starts: int
    max_rounds: int
    tolerance: float
    on_round: Callable[[float], None] | None
    checkpoint: Checkpoint | None

    def race(self, k: int) -> Run:
        """Run each start for a few rounds, and give the best."""
        runs: list[Run] = []
        for number in range(self.num_starts if k > 1 else 1):
            run = self._begin(k, number, runs)
            self.advance(run, min(RACE_ROUNDS, self.max_rounds))
            runs.append(run)
        best = min(runs, key=lambda run: run.best.cost)
        if self.final_rule is None:
            return best
        final = self._taken_up(f"clusters-{k}-final", k, self.final_rule)
        if final is None:
            start = best.best.assignment
            final = Run(self.rows, f"clusters-{k}-final", k, self.final_rule, self.p, start=start)
        self.advance(final, min(RACE_ROUNDS, self.max_rounds))
        return final

    def advance(self, run: Run, max_rounds: int) -> None:
        """Run until it has done so many rounds in all, or is finished."""

        def after_round(run: Run) -> None:
            if self.checkpoint is not None:
                self.checkpoint.save(run.name, run.state())
            self._report(run.best.cost)

        run.advance(max_rounds - len(run.costs), self.tolerance, after_round)

    def _report(self, cost: float) -> None:
        if self.on_round is not None:
            self.on_round(cost)

    def _begin(self, k: int, number: int, before: list[Run]) -> Run:
        """Take up a run where it was saved, or begin it."""
        name, rule = f"clusters-{k}-start-{number}", self.rule(k)
        saved = self._taken_up(name, k, rule)
        if saved is not None:
            return saved
        start: Tensor | Fit
        if k > 1:
            start = self._merged_start(k, number, before)
        elif self.p < 2:
            start = lewis_fit(self.rows, rule, self.p)
        else:
            start = norm_bands(self.rows.norms, 1)
        return Run(self.rows, name, k, rule, self.p, start=start)

    def _taken_up(self, name: str, k: int, rule: RankRule) -> Run | None:
        """A run as it was saved, if it was."""
        saved = None if self.checkpoint is None else self.checkpoint.states.get(name)
        if saved is None:
            return None
        try:
            return Run(self.rows, name, k, rule, self.p, saved=saved)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"the checkpoint's {name} is damaged ({error!r}); expected a run that was saved there. Delete "
                "the folder to begin again."
            ) from error

    def _merged_start(self, k: int, number: int, before: list[Run]) -> Tensor:
        """A few rounds of more clusters than asked for, merged: cluster of each row, shape (n,)."""
        many, rule = min(SURPLUS * k if k <= MOST_MERGED else k, self.rows.num_rows), self.rule(k)
        generator = torch.Generator().manual_seed(self.seed + number)
        start: Tensor | Fit
        if number == 0:
            start = norm_bands(self.rows.norms, many)
        elif number % 2 == 1:
            start = neighbourhoods(self.rows, many, round(sum(before[0].current.ranks) / k), generator)
        else:
            start = random_split(self.rows.num_rows, many, generator)
        run = Run(self.rows, "surplus", many, rule, self.p, start=start)
        run.advance(SURPLUS_ROUNDS, self.tolerance, lambda _: self._report(float("inf")))
        merged = merge_clusters(run.sums.grams, [int(size) for size in run.sums.sizes], k, rule)
        return merged.to(self.rows.device)[run.assignment]


def _clustering(rows: Rows, run: Run) -> ProjectiveClustering:
    fit = run.best
    kept, assignment = whole(rows, fit.assignment).unique(return_inverse=True)
    bases = [fit.vectors[number, : fit.ranks[number]].clone() for number in kept.tolist()]
    codes = fit.allocation.per_byte
    per_byte = None if codes is None else [codes[number] for number in kept.tolist()]
    return ProjectiveClustering(assignment, bases, fit.cost, run.costs, per_byte)
