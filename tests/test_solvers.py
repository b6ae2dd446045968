"""The solvers: planted subspaces, plain references, and what never happens."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_projclust.solvers import ProjectiveClustering, messi, svd
from hf_projclust.solvers.projective import _equal_split, _is_not_last_of_its_cluster, fill_empty_clusters
from hf_projclust.solvers.ranks import uniform_rank
from hf_projclust.solvers.subspaces import fit_subspace, squared_distances


def planted(num_clusters: int, rank: int, dim: int, rows_each: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows in random subspaces, in random order, and the cluster of each."""
    generator = torch.Generator().manual_seed(seed)
    rows = [
        torch.randn(rows_each, rank, generator=generator, dtype=torch.float64)
        @ torch.randn(rank, dim, generator=generator, dtype=torch.float64)
        for _ in range(num_clusters)
    ]
    order = torch.randperm(num_clusters * rows_each, generator=generator)
    return torch.cat(rows)[order], torch.arange(num_clusters).repeat_interleave(rows_each)[order]


def reference_cost(table: torch.Tensor, result: ProjectiveClustering) -> float:
    """The cost of an assignment, in NumPy, one row at a time."""
    total = 0.0
    for row, cluster in zip(table.double().numpy(), result.assignment.tolist(), strict=True):
        basis = result.bases[cluster].double().numpy()
        total += float(np.sum((row - row @ basis.T @ basis) ** 2))
    return total


def rand_index(left: torch.Tensor, right: torch.Tensor) -> float:
    same_left, same_right = left[:, None] == left[None], right[:, None] == right[None]
    return float((same_left == same_right).double().mean())


@pytest.mark.parametrize(("num_clusters", "rank", "dim"), [(2, 1, 5), (3, 2, 12), (3, 5, 40)])
def test_planted_subspaces_are_recovered(num_clusters: int, rank: int, dim: int) -> None:
    table, clusters = planted(num_clusters, rank, dim, rows_each=60)
    result = messi(table, num_clusters=num_clusters, rank=rank, num_starts=20)
    assert rand_index(result.assignment, clusters) == 1
    assert result.cost < 1e-12 * float(table.square().sum())


def test_svd_is_the_truncated_singular_value_decomposition() -> None:
    table = torch.randn(50, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    result = svd(table, rank=3)
    u, s, vh = np.linalg.svd(table.numpy(), full_matrices=False)
    expected = (u[:, :3] * s[:3]) @ vh[:3]
    basis = result.bases[0].numpy()
    np.testing.assert_allclose(table.numpy() @ basis.T @ basis, expected, atol=1e-10)
    assert result.cost == pytest.approx(np.sum(s[3:] ** 2))
    assert result.assignment.tolist() == [0] * 50


def test_one_cluster_of_messi_is_svd() -> None:
    table, _ = planted(3, 2, 9, rows_each=30)
    assert messi(table, num_clusters=1, rank=4).cost == svd(table, rank=4).cost


def test_two_lines_by_hand() -> None:
    table = torch.tensor([[1.0, 0], [0, 2], [3, 0], [0, -4], [-5, 0]])
    result = messi(table, num_clusters=2, rank=1, num_starts=8)
    assert rand_index(result.assignment, torch.tensor([0, 1, 0, 1, 0])) == 1
    assert result.cost == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_cost_equals_the_plain_reference(dtype: torch.dtype) -> None:
    table = torch.randn(80, 7, generator=torch.Generator().manual_seed(0)).to(dtype)
    result = messi(table, num_clusters=4, rank=2)
    assert result.cost == pytest.approx(reference_cost(table, result), rel=1e-5)
    for basis in result.bases:
        torch.testing.assert_close(basis @ basis.T, torch.eye(2, dtype=basis.dtype), atol=1e-5, rtol=0)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    num_rows=st.integers(1, 40),
    dim=st.integers(1, 6),
    num_clusters=st.integers(1, 8),
    rank=st.integers(1, 6),
    num_distinct=st.integers(1, 40),
)
def test_cost_never_rises_from_round_to_round_and_no_cluster_is_empty(
    seed: int, num_rows: int, dim: int, num_clusters: int, rank: int, num_distinct: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    distinct = torch.randn(num_distinct, dim, generator=generator, dtype=torch.float64)
    table = distinct[torch.randint(num_distinct, (num_rows,), generator=generator)]  # duplicates among them
    num_clusters, rank = min(num_clusters, num_rows), min(rank, dim)
    scale = float(table.square().sum())
    previous = scale
    for max_rounds in range(1, 7):
        result = messi(
            table, num_clusters=num_clusters, rank=rank, seed=seed, num_starts=1, max_rounds=max_rounds, tolerance=0
        )
        cost = reference_cost(table, result)  # from the result alone, not from what the solver says of itself
        assert cost <= previous + 1e-9 * scale
        assert result.cost == pytest.approx(cost, abs=1e-9 * scale)
        assert torch.bincount(result.assignment, minlength=num_clusters).min() >= 1
        previous = cost


def test_rounds_lower_the_cost() -> None:
    table, _ = planted(4, 2, 10, rows_each=50)
    costs = messi(table + 0.1 * torch.randn_like(table), num_clusters=4, rank=2).costs
    assert len(costs) > 3
    assert costs[-1] < 0.7 * costs[0]


def test_more_starts_are_no_worse_and_the_best_is_finished() -> None:
    table, _ = planted(4, 2, 8, rows_each=40, seed=5)
    seen: list[float] = []
    result = messi(table, num_clusters=4, rank=2, num_starts=6, max_rounds=2, tolerance=0, on_round=seen.append)
    assert result.cost == min(seen)


def test_every_row_is_in_its_nearest_subspace_at_the_end() -> None:
    table = torch.randn(200, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    result = messi(table, num_clusters=3, rank=2, max_rounds=500, tolerance=0)
    distances = torch.stack([((table - table @ basis.T @ basis) ** 2).sum(1) for basis in result.bases])
    assert torch.equal(distances.argmin(0), result.assignment)


def test_rotating_the_rows_rotates_the_result() -> None:
    table = torch.randn(90, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    rotation = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))).Q
    plain, rotated = (messi(rows, num_clusters=3, rank=2) for rows in (table, table @ rotation))
    assert torch.equal(plain.assignment, rotated.assignment)
    assert plain.cost == pytest.approx(rotated.cost)


def test_same_seed_same_result_and_input_untouched() -> None:
    table = torch.randn(60, 5, generator=torch.Generator().manual_seed(4))
    before = table.clone()
    first, again, other = (messi(table, num_clusters=3, rank=2, seed=seed) for seed in (7, 7, 8))
    assert torch.equal(first.assignment, again.assignment)
    assert first.costs == again.costs
    assert not torch.equal(first.assignment, other.assignment)
    assert torch.equal(table, before)


@pytest.mark.parametrize(
    "table",
    [
        torch.zeros(12, 4),  # no energy at all
        torch.ones(12, 4),  # one direction
        torch.eye(4).repeat(3, 1),  # duplicates
        torch.cat([torch.zeros(11, 4), torch.full((1, 4), 1e8)]),  # one huge row
        torch.randn(3, 4, generator=torch.Generator().manual_seed(0)),  # as many rows as clusters
    ],
    ids=["zeros", "constant", "duplicates", "huge row", "n = k"],
)
def test_odd_tables_are_clustered_without_empty_clusters_or_nan(table: torch.Tensor) -> None:
    result = messi(table, num_clusters=3, rank=2)
    assert torch.bincount(result.assignment, minlength=3).min() >= 1
    assert np.isfinite(result.cost)
    assert result.cost <= svd(table, rank=2).cost + 1e-6 * float(table.square().sum())


def test_an_empty_cluster_is_filled_with_the_rows_that_fit_worst() -> None:
    # Started from an equal split of equal rows, all rows prefer one cluster; the outlier must get its own.
    table = torch.tensor([[1.0, 0, 0]] * 9 + [[0, 3.0, 0]])
    result = messi(table, num_clusters=2, rank=1, num_starts=1)
    assert result.cost == pytest.approx(0, abs=1e-9)
    assert (result.assignment == result.assignment[9]).sum() == 1


@pytest.mark.parametrize("rank", [0, 1, 3, 4, 5])
def test_distances_by_basis_and_by_complement_agree(rank: int) -> None:
    rows = torch.randn(20, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    subspace = fit_subspace(rows[:10], rank)
    expected = ((rows - rows @ subspace.basis.T @ subspace.basis) ** 2).sum(1)
    torch.testing.assert_close(squared_distances(rows, rows.square().sum(1), subspace), expected)
    assert subspace.residual == pytest.approx(float(expected[:10].sum()))


def test_basis_vectors_come_in_order_of_the_energy_they_hold() -> None:
    rows = torch.randn(50, 6, dtype=torch.float64) * torch.tensor([1.0, 5, 2, 4, 3, 0.5])
    energies = (rows @ fit_subspace(rows, 4).basis.T).square().sum(0)
    assert torch.equal(energies, energies.sort(descending=True).values)


def test_random_starts_are_of_equal_sizes() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (_equal_split(11, 4, generator) for _ in range(2))
    assert torch.bincount(first).tolist() == torch.bincount(second).tolist() == [3, 3, 3, 2]
    assert not torch.equal(first, second)


def test_empty_clusters_get_the_rows_that_fit_worst_up_to_the_rank() -> None:
    distances = torch.tensor([1.0, 9, 2, 8, 3, 7, 4, 6, 5, 0, 0, 0])
    filled = fill_empty_clusters(torch.zeros(12, dtype=torch.long), distances, num_clusters=2, rank=3)
    assert filled.nonzero().flatten().tolist() == [1, 3, 5]


def test_two_empty_clusters_get_different_rows() -> None:
    distances = torch.tensor([1.0, 9, 2, 8, 3, 7, 4, 6, 5, 0, 0, 0])
    filled = fill_empty_clusters(torch.full((12,), 2), distances, num_clusters=3, rank=2)
    assert (filled == 0).nonzero().flatten().tolist() == [1, 3]
    assert (filled == 1).nonzero().flatten().tolist() == [5, 7]


def test_no_cluster_is_emptied_to_fill_another() -> None:
    assignment = torch.tensor([0, 1, 1, 2])  # rows 0 and 3 are alone, and fit worst
    filled = fill_empty_clusters(assignment, torch.tensor([9.0, 2, 1, 8]), num_clusters=4, rank=5)
    assert filled.tolist() == [0, 3, 1, 2]


def test_a_full_assignment_is_left_alone() -> None:
    assignment = torch.tensor([1, 0, 1])
    assert torch.equal(fill_empty_clusters(assignment, torch.rand(3), 2, 1), assignment)


def test_last_of_each_cluster_stays() -> None:
    movable = _is_not_last_of_its_cluster(torch.tensor([2, 0, 2, 1, 0]))
    assert movable.tolist() == [True, True, False, False, False]


@settings(max_examples=200, deadline=None)
@given(num_rows=st.integers(1, 5000), dim=st.integers(1, 300), k=st.integers(1, 9), compression=st.floats(0.01, 0.99))
def test_uniform_rank_fills_the_budget_and_never_exceeds_it(
    num_rows: int, dim: int, k: int, compression: float
) -> None:
    budget, one = (1 - compression) * num_rows * dim, num_rows + k * dim
    try:
        rank = uniform_rank(num_rows, dim, k, compression)
    except ValueError:
        assert budget < one
        return
    assert 1 <= rank <= dim
    assert rank * one <= budget
    assert rank == dim or (rank + 1) * one > budget - 1
