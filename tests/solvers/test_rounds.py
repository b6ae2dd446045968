"""Rounds: the cost is what a slow reference says, it never rises, and clusters that lose all rows begin again."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_tables import quick, random_table, seeds

from hf_projclust.solvers import rounds
from hf_projclust.solvers.ranks import adaptive_ranks, equal_ranks, stored_numbers, whole_numbers
from hf_projclust.solvers.rounds import Fit, Run, whole
from hf_projclust.solvers.rows import Rows
from hf_projclust.solvers.starts import norm_bands
from hf_projclust.solvers.subspaces import spectrum, squared_distances


def random_weights(num_rows: int, seed: int) -> torch.Tensor:
    """Weights from 0 to 1, a quarter of them 0."""
    weights = torch.rand(num_rows, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return torch.where(weights < 0.25, 0, weights)


def begun(rows: Rows, k: int, rule: Any, p: float = 2.0) -> Run:
    return Run(rows, "run", k, rule, p, start=norm_bands(rows.norms, k))


def reference_cost(table: torch.Tensor, weights: torch.Tensor, fit: Fit, p: float = 2.0) -> float:
    """Sum of (root of the weight x distance)^p, in NumPy, one row at a time."""
    total = 0.0
    for row, weight, number in zip(table.double().numpy(), weights.tolist(), fit.assignment.tolist(), strict=True):
        basis = fit.vectors[number, : fit.ranks[number]].double().numpy()
        left = row - row @ basis.T @ basis
        total += (weight * float(np.sum(left**2))) ** (p / 2)
    return total


@pytest.mark.parametrize("is_weighted", [False, True])
@pytest.mark.parametrize("rule", [equal_ranks(2), adaptive_ranks(350)], ids=["equal", "adaptive"])
def test_cost_equals_the_plain_reference_after_every_round(is_weighted: bool, rule: Any) -> None:
    table = random_table(80, 7)
    weights = random_weights(80, 1) if is_weighted else torch.ones(80, dtype=torch.float64)
    run = begun(Rows(table, block_rows=13).weighted(weights), 4, rule)
    assert run.current.cost == pytest.approx(reference_cost(table, weights, run.current), rel=1e-9)
    checked: list[Fit] = []
    run.advance(8, 0, lambda run: checked.append(run.current))
    assert len(checked) > 2
    for fit in checked:
        assert fit.cost == pytest.approx(reference_cost(table, weights, fit), rel=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_cost_of_a_lower_precision_table_equals_the_plain_reference(dtype: torch.dtype) -> None:
    table = random_table(80, 7).to(dtype)
    run = begun(Rows(table), 4, equal_ranks(2))
    run.advance(20, 1e-4)
    ones = torch.ones(80, dtype=torch.float64)
    assert run.best.cost == pytest.approx(reference_cost(table, ones, run.best), rel=1e-5)


@quick
@given(seed=seeds, p=st.floats(1, 1.95), noise=st.sampled_from([1.0, 0.3, 0.1]), k=st.integers(1, 3))
def test_below_two_the_reported_cost_is_never_below_the_true_one(seed: int, p: float, noise: float, k: int) -> None:
    table, weights = random_table(40, 2, seed) @ random_table(2, 6, seed + 1), random_weights(40, seed)
    table += noise * random_table(40, 6, seed + 2)
    run = begun(Rows(table).weighted(weights), k, equal_ranks(2), p)
    run.advance(6, 0)
    assert run.current.cost >= reference_cost(table, weights, run.current, p) * (1 - 1e-9)


def test_below_two_the_reported_cost_is_never_below_the_true_one_where_rows_nearly_fit() -> None:
    table = random_table(100, 2) @ random_table(2, 10, 1) + 1e-4 * random_table(100, 10, 2)
    run = begun(Rows(table), 1, equal_ranks(2), 1.0)
    run.advance(20, 0)
    true = reference_cost(table, torch.ones(100, dtype=torch.float64), run.best, 1.0)
    assert run.best.cost >= true * (1 - 1e-9)


def test_below_two_the_reported_cost_is_the_true_one_once_rounds_settle() -> None:
    table = random_table(60, 5)
    run = begun(Rows(table), 1, equal_ranks(2), 1.0)
    run.advance(200, 1e-12)
    true = reference_cost(table, torch.ones(60, dtype=torch.float64), run.current, 1.0)
    assert run.current.cost == pytest.approx(true, rel=1e-4)


@quick
@given(
    seed=seeds,
    num_rows=st.integers(1, 40),
    dim=st.integers(1, 6),
    k=st.integers(1, 8),
    rank=st.integers(0, 6),
    num_distinct=st.integers(1, 40),
    is_weighted=st.booleans(),
)
def test_cost_of_equal_ranks_never_rises_and_no_cluster_is_empty(
    seed: int, num_rows: int, dim: int, k: int, rank: int, num_distinct: int, is_weighted: bool
) -> None:
    chosen = torch.randint(num_distinct, (num_rows,), generator=torch.Generator().manual_seed(seed))
    table = random_table(num_distinct, dim, seed)[chosen]  # duplicates among them
    weights = random_weights(num_rows, seed) if is_weighted else torch.ones(num_rows, dtype=torch.float64)
    k, rank = min(k, num_rows), min(rank, dim)
    run = begun(Rows(table, block_rows=7).weighted(weights), k, equal_ranks(rank))
    slack = 1e-9 * float(run.rows.norms.square().sum())
    previous = reference_cost(table, weights, run.current)
    fits: list[Fit] = []
    run.advance(10, 1e-9, lambda run: fits.append(run.current))
    for fit, reported in zip(fits, run.costs, strict=True):
        cost = reference_cost(table, weights, fit)  # from the fit alone, not from what the run says of itself
        assert cost <= previous + slack
        assert reported == pytest.approx(cost, abs=slack)
        assert rank == 0 or torch.bincount(fit.assignment, minlength=k).min() >= 1
        previous = cost


@quick
@given(seed=seeds, k=st.integers(1, 6), share=st.floats(0.1, 0.9), is_weighted=st.booleans())
def test_adaptive_rounds_stay_within_the_budget_and_the_best_is_the_least(
    seed: int, k: int, share: float, is_weighted: bool
) -> None:
    table, budget = random_table(50, 6, seed) * (1 + torch.arange(50).unsqueeze(1) % 7), int(share * 300)
    weights = random_weights(50, seed) if is_weighted else torch.ones(50, dtype=torch.float64)
    run = begun(Rows(table).weighted(weights), k, adaptive_ranks(budget))
    start = run.current.cost
    fits: list[Fit] = []
    run.advance(12, 1e-9, lambda run: fits.append(run.current))
    for fit in [*fits, run.best]:
        sizes = torch.bincount(fit.assignment, minlength=k).tolist()
        stored = stored_numbers(sizes, 6)
        assert sum(int(row[rank]) for row, rank in zip(stored, fit.ranks, strict=True)) <= budget
    assert run.best.cost == min([start, *run.costs])
    energy = float(run.rows.norms.square().sum())
    assert run.best.cost == pytest.approx(reference_cost(table, weights, run.best), abs=1e-9 * energy)


def test_the_best_fit_is_no_worse_than_the_start() -> None:
    costs: list[tuple[float, float]] = []
    for seed in range(60):
        generator = torch.Generator().manual_seed(seed)
        table = torch.randn(120, 8, generator=generator, dtype=torch.float64)
        table *= torch.rand(120, 1, generator=generator, dtype=torch.float64) ** 3
        run = begun(Rows(table), 3 + seed % 4, adaptive_ranks(400))
        start = run.current.cost
        run.advance(30, 1e-4)
        costs.append((run.best.cost, start))
    assert all(best <= start * (1 + 1e-9) for best, start in costs)


def test_a_start_is_fitted_but_is_no_round_yet() -> None:
    table = torch.tensor([[1.0, 0], [2, 0], [0, 3], [0, 4]], dtype=torch.float64)
    run = Run(Rows(table), "run", 2, equal_ranks(1), 2.0, start=torch.tensor([0, 1, 0, 1]))
    assert run.current.assignment.tolist() == [0, 1, 0, 1]
    assert run.current.cost == pytest.approx(1 + 4)  # each line is the one of its longer row
    assert run.costs == []
    assert run.current is run.best


def test_one_round_by_hand() -> None:
    # Lines y and x; row (1, 2) is nearer y (1) than x (4). Then y's Gram is [[1, 2], [2, 13]], x's [[4, 0], [0, 0]].
    table = torch.tensor([[0.0, 3], [1, 2], [2, 0]], dtype=torch.float64)
    lines = torch.tensor([[[0.0, 1], [1, 0]], [[1, 0], [0, 1]]], dtype=torch.float64)
    start = Fit(torch.full((3,), -1), lines, whole_numbers([1, 1], lines.shape[-1], 0.0), float("inf"))
    run = Run(Rows(table), "run", 2, equal_ranks(1), 2.0, start=start)
    assert run.current.assignment.tolist() == [0, 0, 1]
    assert run.current.cost == pytest.approx(7 - 40**0.5)  # the lesser root of x^2 - 14 x + 9
    run.advance(1, 0)
    assert run.costs == pytest.approx([7 - 40**0.5])
    assert run.is_finished  # no row moved


def test_a_price_moves_rows_to_the_cluster_of_lower_rank() -> None:
    table = torch.tensor([[1.0, 0.1, 0], [1, 0, 0], [0, 0, 1]], dtype=torch.float64)
    axes = torch.eye(3, dtype=torch.float64).expand(2, 3, 3)
    for price, expected in [(0.005, [0, 1]), (0.5, [1, 1])]:  # its second coordinate saves row 0 an error of 0.01
        start = Fit(torch.full((3,), -1), axes, whole_numbers([2, 1], 3, price), float("inf"))
        run = Run(Rows(table), "run", 2, lambda residuals, sizes: whole_numbers([2, 1], 3, 0.0), 2.0, start=start)
        assert run.current.assignment.tolist()[:2] == expected


@pytest.mark.parametrize("p", [1.0, 2.0])
def test_a_cluster_that_loses_all_rows_gets_those_that_fit_worst(p: float, monkeypatch: pytest.MonkeyPatch) -> None:
    filled = []
    real = rounds.fill_empty_clusters
    monkeypatch.setattr(rounds, "fill_empty_clusters", lambda *args: filled.append(real(*args)) or filled[-1])
    table = torch.tensor([[1.0, 0, 0, 0]] * 6 + [[0, 1.0, 0, 0]] * 6 + [[0.5, 0.5, 3.0, 0]], dtype=torch.float64)
    axes = torch.eye(4, dtype=torch.float64)
    vectors = torch.stack([axes, axes[[1, 0, 2, 3]], axes[[3, 0, 1, 2]]])  # no row is near the fourth axis
    start = Fit(torch.full((13,), -1), vectors, whole_numbers([1, 1, 1], vectors.shape[-1], 0.0), float("inf"))
    run = Run(Rows(table, block_rows=5), "run", 3, equal_ranks(1), p, start=start)
    assert len(filled) == 1
    assert run.current.assignment.tolist() == [0] * 6 + [1] * 6 + [2]
    run.advance(3, 0)
    assert run.best.assignment.tolist() == [0] * 6 + [1] * 6 + [2]
    assert reference_cost(table, torch.ones(13), run.best, p) == pytest.approx(0, abs=1e-9)


def test_sums_that_follow_moved_rows_are_those_of_the_clusters() -> None:
    table = random_table(90, 5)
    run = begun(Rows(table, block_rows=8), 4, equal_ranks(2))
    run.advance(6, 0)
    for number in range(4):
        members = table[run.current.assignment == number]
        torch.testing.assert_close(run.sums.grams[number], members.T @ members, atol=1e-10, rtol=1e-10)
        assert int(run.sums.sizes[number]) == len(members)


def test_rounds_stop_when_they_gain_less_than_the_tolerance() -> None:
    table = random_table(300, 6)
    loose, tight = (begun(Rows(table), 4, equal_ranks(2)) for _ in range(2))
    loose.advance(100, 0.2)
    tight.advance(100, 1e-12)
    assert loose.is_finished
    assert len(loose.costs) < len(tight.costs) < 100
    assert tight.best.cost < loose.best.cost
    rounds_done = len(tight.costs)
    tight.advance(5, 1e-12)
    assert len(tight.costs) == rounds_done


def test_at_the_end_every_row_is_in_its_nearest_subspace() -> None:
    run = begun(Rows(random_table(200, 6, 1)), 3, equal_ranks(2))
    run.advance(500, 0)
    distances = squared_distances(run.rows.read(slice(0, 200)), run.best.vectors, run.best.allocation)
    assert torch.equal(distances.argmin(dim=1), run.best.assignment)


@pytest.mark.parametrize("p", [1.0, 2.0])
def test_a_run_taken_up_from_its_state_goes_on_as_the_first_one(p: float) -> None:
    rows = Rows(random_table(120, 6), block_rows=50)
    run = begun(rows, 4, equal_ranks(2), p)
    run.advance(2, 0)
    again = Run(rows, "run", 4, run.rule, p, saved=run.state())
    run.advance(4, 0)
    again.advance(4, 0)
    assert torch.equal(run.best.assignment, again.best.assignment)
    assert again.costs == pytest.approx(run.costs)


def test_whole_is_the_tensor_where_one_process_has_all_rows() -> None:
    own = torch.tensor([3, 1, 2])
    known = whole(Rows(random_table(3, 2), block_rows=2), own)
    assert torch.equal(known, own)
    assert known is not own


@pytest.mark.parametrize("rank", [0, 1, 3, 4, 5])
def test_distances_by_basis_and_by_complement_agree(rank: int) -> None:
    rows = random_table(20, 5)
    found = spectrum((rows[:10].T @ rows[:10]).unsqueeze(0), torch.float64)
    basis = found.vectors[0, :rank]
    expected = ((rows - rows @ basis.T @ basis) ** 2).sum(dim=1)
    torch.testing.assert_close(
        squared_distances(rows, found.vectors, whole_numbers([rank], rows.shape[1], 0.0))[:, 0], expected
    )
    assert float(found.residuals()[0, rank]) == pytest.approx(float(expected[:10].sum()))


def test_eigenvectors_come_in_order_of_the_energy_they_hold() -> None:
    rows = random_table(50, 6) * torch.tensor([1.0, 5, 2, 4, 3, 0.5])
    found = spectrum((rows.T @ rows).unsqueeze(0), torch.float64)
    energies = (rows @ found.vectors[0].T).square().sum(dim=0)
    assert torch.equal(energies, energies.sort(descending=True).values)
    torch.testing.assert_close(energies, found.eigenvalues[0])
