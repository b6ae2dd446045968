"""Projective clustering: planted subspaces, singular values, hand-computed cases, and tables of odd rows."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_tables import random_table
from safetensors.torch import save_file

from hf_projclust.factoring import Factors, factor_table
from hf_projclust.options import FactoringOptions
from hf_projclust.resources import Resources
from hf_projclust.solvers import ProjectiveClustering, Rows, adaptive_ranks, cluster, equal_ranks
from hf_projclust.solvers.ranks import number_budget, stored_numbers
from hf_projclust.tables import TableFile


def planted(ranks: tuple[int, ...], dim: int, rows_each: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows in random subspaces, in random order, and the cluster of each."""
    generator = torch.Generator().manual_seed(seed)
    rows = [
        torch.randn(rows_each, rank, generator=generator, dtype=torch.float64)
        @ torch.randn(rank, dim, generator=generator, dtype=torch.float64)
        for rank in ranks
    ]
    order = torch.randperm(len(ranks) * rows_each, generator=generator)
    return torch.cat(rows)[order], torch.arange(len(ranks)).repeat_interleave(rows_each)[order]


def equal(table: Any, k: int, rank: int, weights: torch.Tensor | None = None, **options: Any) -> ProjectiveClustering:
    """Clusters of one rank."""
    block_rows = options.pop("block_rows", None)
    rows = Rows(table, block_rows=block_rows)
    rows = rows if weights is None else rows.weighted(weights)
    return cluster(rows, num_clusters=k, rule=lambda k: equal_ranks(rank), **options)


def rand_index(left: torch.Tensor, right: torch.Tensor) -> float:
    same_left, same_right = left[:, None] == left[None], right[:, None] == right[None]
    return float((same_left == same_right).double().mean())


def projections(result: ProjectiveClustering) -> torch.Tensor:
    return torch.stack([basis.T @ basis for basis in result.bases])


def reference_cost(table: torch.Tensor, result: ProjectiveClustering, p: float = 2.0) -> float:
    """Sum of distance^p, in NumPy, one row at a time."""
    total = 0.0
    for row, number in zip(table.double().numpy(), result.assignment.tolist(), strict=True):
        basis = result.bases[number].double().numpy()
        total += float(np.sum((row - row @ basis.T @ basis) ** 2)) ** (p / 2)
    return total


@pytest.mark.parametrize(
    ("ranks", "dim"),
    [((1, 1), 5), ((2, 2, 2), 12), ((3, 3, 3), 30), ((3, 3, 3, 3), 30), ((3,) * 5, 30), ((5, 5, 5), 40)],
)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_planted_subspaces_of_equal_rank_are_recovered_by_default(ranks: tuple[int, ...], dim: int, seed: int) -> None:
    table, clusters = planted(ranks, dim, 60, seed)
    result = equal(table, len(ranks), ranks[0], seed=seed)
    assert rand_index(result.assignment, clusters) == 1
    assert result.cost < 1e-12 * float(table.square().sum())


@pytest.mark.parametrize(("ranks", "dim"), [((1, 2, 4), 20), ((2, 3, 5), 30), ((1, 3, 5), 30)])
@pytest.mark.parametrize("seed", [0, 1])
def test_planted_subspaces_of_different_ranks_are_recovered_under_the_exact_budget(
    ranks: tuple[int, ...], dim: int, seed: int
) -> None:
    table, clusters = planted(ranks, dim, 60, seed)
    budget = sum(rank * (60 + dim) for rank in ranks)
    result = cluster(
        Rows(table), num_clusters=len(ranks), rule=lambda k: adaptive_ranks(budget), seed=seed, num_starts=8
    )
    assert rand_index(result.assignment, clusters) == 1
    found = {int(clusters[result.assignment == number][0]): len(basis) for number, basis in enumerate(result.bases)}
    assert found == dict(enumerate(ranks))


def test_planted_subspaces_in_float32_with_noise_are_recovered() -> None:
    table, clusters = planted((3, 3, 3), 30, 60, 4)
    noisy = (table + 0.01 * random_table(180, 30, 5)).float()
    assert rand_index(equal(noisy, 3, 3).assignment, clusters) == 1


@pytest.mark.parametrize("rank", [0, 1, 3, 8])
def test_one_cluster_is_the_truncated_singular_value_decomposition(rank: int) -> None:
    table = random_table(50, 8)
    result = equal(table, 1, rank)
    u, s, vh = np.linalg.svd(table.numpy(), full_matrices=False)
    basis = result.bases[0].numpy()
    np.testing.assert_allclose(table.numpy() @ basis.T @ basis, (u[:, :rank] * s[:rank]) @ vh[:rank], atol=1e-10)
    np.testing.assert_allclose(basis.T @ basis, vh[:rank].T @ vh[:rank], atol=1e-10)
    assert result.cost == pytest.approx(np.sum(s[rank:] ** 2), abs=1e-9)
    assert result.assignment.tolist() == [0] * 50


def test_one_weighted_cluster_is_the_singular_value_decomposition_of_scaled_rows() -> None:
    table, weights = random_table(50, 8), torch.arange(50, dtype=torch.float64)
    result = equal(table, 1, 3, weights)
    _, s, vh = np.linalg.svd(table.numpy() * np.sqrt(weights.numpy())[:, None], full_matrices=False)
    np.testing.assert_allclose(projections(result)[0].numpy(), vh[:3].T @ vh[:3], atol=1e-10)
    assert result.cost == pytest.approx(np.sum(s[3:] ** 2))


def test_six_rows_on_two_lines_by_hand() -> None:
    diagonal, axis = [[1.0, 1], [2, 2], [-5, -5]], [[0.5, 0], [-3.0, 0], [6, 0]]
    result = equal(torch.tensor(diagonal + axis, dtype=torch.float64), 2, 1)
    assert rand_index(result.assignment, torch.tensor([0, 0, 0, 1, 1, 1])) == 1
    assert result.cost == pytest.approx(0, abs=1e-12)
    of_diagonal, of_axis = projections(result)[result.assignment[[0, 3]]]
    torch.testing.assert_close(of_diagonal, torch.full((2, 2), 0.5, dtype=torch.float64))
    torch.testing.assert_close(of_axis, torch.tensor([[1.0, 0], [0, 0]], dtype=torch.float64))


def test_a_weighted_line_by_hand() -> None:
    # One line for (1, 0) with weight 1 and (0, 1) with weight 4: it goes to the second, and leaves 1 x 1.
    table = torch.eye(2, dtype=torch.float64)
    result = equal(table, 1, 1, torch.tensor([1.0, 4.0], dtype=torch.float64))
    torch.testing.assert_close(projections(result)[0], torch.tensor([[0.0, 0], [0, 1]], dtype=torch.float64))
    assert result.cost == pytest.approx(1.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_cost_equals_the_plain_reference_and_bases_are_orthonormal(dtype: torch.dtype) -> None:
    table = random_table(80, 7).to(dtype)
    result = equal(table, 4, 2)
    assert result.cost == pytest.approx(reference_cost(table, result), rel=1e-5)
    for basis in result.bases:
        torch.testing.assert_close(basis @ basis.T, torch.eye(2, dtype=basis.dtype), atol=1e-5, rtol=0)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), k=st.integers(1, 5), is_adaptive=st.booleans())
def test_permuting_rows_permutes_the_result(seed: int, k: int, is_adaptive: bool) -> None:
    table, order = random_table(60, 5, seed), torch.randperm(60, generator=torch.Generator().manual_seed(seed))
    rule = adaptive_ranks(180) if is_adaptive else equal_ranks(2)
    plain, permuted = (
        cluster(Rows(rows), num_clusters=k, rule=lambda k: rule, num_starts=1, max_rounds=8)
        for rows in (table, table[order])
    )
    assert torch.equal(plain.assignment[order], permuted.assignment)
    assert permuted.costs == pytest.approx(plain.costs)
    torch.testing.assert_close(projections(plain), projections(permuted))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), exponent=st.integers(-6, 6))
def test_rotating_and_scaling_rows_does_the_same_to_the_result(seed: int, exponent: int) -> None:
    table, rotation = random_table(90, 5, seed), torch.linalg.qr(random_table(5, 5, seed + 1)).Q
    plain, rotated = (equal(rows, 3, 2, max_rounds=8) for rows in (table, 2.0**exponent * table @ rotation))
    assert rotated.cost == pytest.approx(4.0**exponent * plain.cost, rel=1e-6)
    assert rand_index(plain.assignment, rotated.assignment) == 1


@pytest.mark.parametrize(
    ("k", "rule", "p"),
    [(4, equal_ranks(2), 2.0), (4, adaptive_ranks(700), 2.0), (3, equal_ranks(2), 1.0), (1, equal_ranks(2), 1.0)],
    ids=["equal", "adaptive", "below two", "robust"],
)
def test_blocks_of_any_size_a_file_and_one_tensor_give_the_same_answer(
    k: int, rule: Callable, p: float, tmp_path: Path
) -> None:
    table = random_table(200, 6)
    save_file({"table": table}, tmp_path / "model.safetensors")
    file = TableFile(tmp_path / "model.safetensors", "table", (200, 6), torch.float64)
    options = {"num_clusters": k, "rule": lambda k: rule, "p": p, "max_rounds": 10}
    whole = cluster(Rows(table), **options)
    for rows in (
        Rows(table, block_rows=7),
        Rows(table, block_rows=1),
        Rows(table, block_rows=200),
        Rows(file, block_rows=30),
    ):
        found = cluster(rows, **options)
        assert torch.equal(found.assignment, whole.assignment)
        assert found.costs == pytest.approx(whole.costs)
        torch.testing.assert_close(projections(found), projections(whole))


def test_a_row_of_weight_two_counts_as_two_rows() -> None:
    table, weights = random_table(40, 5), torch.ones(40, dtype=torch.float64)
    weights[:10] = 2
    weighted, repeated = equal(table, 1, 2, weights), equal(torch.cat([table, table[:10]]), 1, 2)
    assert weighted.cost == pytest.approx(repeated.cost)
    torch.testing.assert_close(projections(weighted), projections(repeated))


def test_rows_without_weight_do_not_move_the_subspaces() -> None:
    table, clusters = planted((2, 2), 10, 60, 0)
    weights = torch.ones(120, dtype=torch.float64)
    weights[::5] = 0
    table[::5] = 100 * random_table(24, 10, 1)
    result = equal(table, 2, 2, weights, num_starts=3)
    kept = weights > 0
    assert rand_index(result.assignment[kept], clusters[kept]) == 1
    assert result.cost < 1e-9


def test_a_would_be_cluster_without_weight_takes_no_subspace() -> None:
    table, clusters = planted((2, 2, 2), 10, 40, 1)
    weights = (clusters != 2).double()
    result = equal(table, 2, 2, weights, num_starts=3)
    kept = clusters != 2
    assert rand_index(result.assignment[kept], clusters[kept]) == 1
    assert result.cost < 1e-9


def test_weights_that_are_all_zero_cost_nothing() -> None:
    result = equal(random_table(20, 4), 3, 2, torch.zeros(20, dtype=torch.float64))
    assert result.cost == 0
    assert all(basis.isfinite().all() for basis in result.bases)


def test_more_starts_are_no_worse_and_the_best_is_finished() -> None:
    table, _ = planted((2, 2, 2, 2), 8, 40, 5)
    seen: list[float] = []
    result = equal(table, 4, 2, num_starts=6, max_rounds=2, tolerance=0, on_round=seen.append)
    assert len(seen) > 6
    assert result.cost == min(seen)


def test_rounds_lower_the_cost() -> None:
    costs = equal(random_table(400, 10), 5, 2, num_starts=1).costs
    assert len(costs) > 3
    assert costs[-1] < 0.99 * costs[0]


def test_same_seed_same_result_and_input_untouched() -> None:
    table = random_table(60, 5, 4).float()
    before = table.clone()
    first, again = (equal(table, 3, 2, seed=7, num_starts=4) for _ in range(2))
    assert torch.equal(first.assignment, again.assignment)
    assert first.costs == again.costs
    assert len({equal(table, 3, 2, seed=seed, max_rounds=2).cost for seed in range(8)}) > 1
    assert torch.equal(table, before)


def test_of_several_numbers_of_clusters_the_last_that_was_better_is_finished() -> None:
    table, clusters = planted((2, 2), 12, 60, 0)
    tried = []

    def rule(k: int) -> Callable:
        tried.append(k)
        return adaptive_ranks(2 * 2 * (60 + 12))  # enough for both planes, and nothing more to gain

    result = cluster(Rows(table), num_clusters=[1, 2, 4, 8], rule=rule, num_starts=3)
    assert rand_index(result.assignment, clusters) == 1
    assert 8 not in tried
    single = cluster(Rows(table), num_clusters=1, rule=rule)
    assert result.cost < 1e-9 * single.cost


def test_adaptive_ranks_of_a_result_stay_within_the_budget() -> None:
    table = random_table(150, 8) * (torch.arange(150, dtype=torch.float64).unsqueeze(1) % 9 + 0.1)
    for compression in (0.2, 0.5, 0.8):
        budget = number_budget(150, 8, compression)
        result = cluster(Rows(table), num_clusters=4, rule=lambda k, budget=budget: adaptive_ranks(budget))
        stored = stored_numbers(torch.bincount(result.assignment).tolist(), 8)
        assert sum(int(row[len(basis)]) for row, basis in zip(stored, result.bases, strict=True)) <= budget
        assert result.cost == pytest.approx(reference_cost(table, result))


def test_adaptive_clusters_are_no_worse_than_one_at_equal_size() -> None:
    table, _ = planted((2, 2, 6), 12, 60, 0)
    budget = number_budget(180, 12, 0.4)
    one, several = (cluster(Rows(table), num_clusters=k, rule=lambda k: adaptive_ranks(budget)) for k in (1, 4))
    assert several.cost < one.cost


ODD_TABLES = {
    "zeros": torch.zeros(12, 4),
    "constant": torch.ones(12, 4),
    "duplicates": torch.eye(4).repeat(3, 1),
    "some zero rows": torch.cat([torch.zeros(6, 4), random_table(6, 4).float()]),
    "one huge row": torch.cat([torch.zeros(11, 4), torch.full((1, 4), 1e8)]),
    "n = k": random_table(3, 4).float(),
    "n < d": random_table(5, 9).float(),
    "d = 1": random_table(12, 1).float(),
}


@pytest.mark.parametrize("table", ODD_TABLES.values(), ids=ODD_TABLES.keys())
@pytest.mark.parametrize("p", [1.0, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_odd_tables_are_clustered_without_empty_clusters_or_nan(
    table: torch.Tensor, p: float, dtype: torch.dtype
) -> None:
    table, rank = table.to(dtype), min(2, table.shape[1])
    result = equal(table, 3, rank, p=p)
    assert torch.bincount(result.assignment, minlength=3).min() >= 1
    assert np.isfinite(result.cost)
    for basis in result.bases:
        torch.testing.assert_close(basis @ basis.T, torch.eye(rank, dtype=dtype), atol=1e-5, rtol=0)
    if p == 2:
        assert result.cost <= equal(table, 1, rank).cost + 1e-6 * float(table.square().sum())


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("p", [1.0, 2.0])
def test_rank_zero_leaves_all_and_full_rank_leaves_nothing(k: int, p: float) -> None:
    table = random_table(20, 4)
    nothing, everything = equal(table, k, 0, p=p), equal(table, k, 4, p=p)
    assert nothing.cost == pytest.approx(float(table.norm(dim=1).pow(p).sum()))
    assert reference_cost(table, everything, p) == pytest.approx(0, abs=1e-9)
    assert all(basis.shape == (0, 4) for basis in nothing.bases)
    assert all(basis.shape == (4, 4) for basis in everything.bases)


def test_an_outlier_among_equal_rows_gets_a_cluster_of_its_own() -> None:
    table = torch.tensor([[1.0, 0, 0]] * 9 + [[0, 3.0, 0]])
    result = equal(table, 2, 1, num_starts=1)
    assert result.cost == pytest.approx(0, abs=1e-9)
    assert (result.assignment == result.assignment[9]).sum() == 1


def options(**changed: Any) -> FactoringOptions:
    """Options without tokens, as ``compress`` would pass them."""
    given = {
        "preset": "messi",
        "num_clusters": 3,
        "compression": 0.3,
        "rank": None,
        "adaptive_ranks": None,
        "p": None,
        "token_counts": "uniform",
        "count_exponent": 1.0,
        "norm_exponent": None,
        "seed": 0,
        "num_starts": 2,
        "max_rounds": 20,
        "tolerance": 1e-3,
    }
    return FactoringOptions(**{**given, **changed})


def factored(table: torch.Tensor, **changed: Any) -> Factors:
    return factor_table(table, options(**changed), Resources(device=None, memory_limit=None, checkpoint=None))


PRESETS = {
    "messi": {},
    "svd": {"preset": "svd", "num_clusters": None},
    "robust": {"preset": "robust", "num_clusters": None},
    "adaptive": {"preset": "adaptive", "num_clusters": None},
    "adaptive p=1": {"preset": "adaptive", "p": 1.0},
}


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("scale", [1e-25, 1e-12, 1e15, 1e18])
def test_the_scale_of_a_table_changes_no_relative_error(preset: str, dtype: torch.dtype, scale: float) -> None:
    table, _ = planted((2, 2, 2), 12, 40, 0)
    table = (table + 0.1 * random_table(120, 12)).float()
    exact = 2.0 ** round(np.log2(scale))  # a power of two, so that scaling rounds nothing
    plain, scaled = (factored((rows).to(dtype), **PRESETS[preset]) for rows in (table, table * exact))
    assert all(tensor.isfinite().all() for tensor in scaled.tensors.values())
    assert scaled.layout == plain.layout
    for name in ("relative_squared_error", "weighted_relative_squared_error"):
        assert scaled.record[name] == pytest.approx(plain.record[name], rel=1e-2)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_one_row_of_1e19_gives_finite_factors(preset: str, dtype: torch.dtype) -> None:
    table = random_table(60, 8)
    table[17] = 1e19
    result = factored(table.to(dtype), **PRESETS[preset])
    assert all(tensor.isfinite().all() for tensor in result.tensors.values())
    errors = [result.record[name] for name in ("relative_squared_error", "weighted_relative_squared_error")]
    assert all(0 <= error <= 1.01 for error in errors)
    if preset != "adaptive p=1":  # which need not spend its ranks on one row
        assert result.record["relative_squared_error"] < 1e-3  # nearly all the energy is in the one row


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_tables_of_any_precision_are_factored_in_their_own(preset: str, dtype: torch.dtype) -> None:
    table, _ = planted((2, 2, 2), 12, 40, 0)
    result = factored((table + 0.1 * random_table(120, 12)).to(dtype), **PRESETS[preset])
    assert {name: tensor.dtype for name, tensor in result.tensors.items()} == {
        "coefficients": dtype,
        "bases": dtype,
        "rows": torch.int32,
    }
    assert 0 < result.record["relative_squared_error"] < 0.6
    assert result.layout.num_parameters <= 1008  # 0.7 x 120 x 12


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("table", [torch.zeros(60, 6), torch.ones(60, 6), torch.eye(6).repeat(10, 1)])
def test_tables_of_zeros_constants_and_duplicates_are_factored(preset: str, table: torch.Tensor) -> None:
    result = factored(table, **PRESETS[preset])
    assert all(tensor.isfinite().all() for tensor in result.tensors.values())
    assert sorted(result.tensors["rows"].tolist()) == list(range(60))
    assert np.isfinite([result.record["relative_squared_error"], *result.record["energy_kept"]]).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_tables_that_are_not_finite_are_refused_with_the_row(value: float) -> None:
    table = random_table(60, 6)
    table[41, 2] = value
    with pytest.raises(ValueError, match="in 1 of 60 rows, the first at token id 41; expected finite numbers"):
        factored(table)


@pytest.mark.parametrize(
    ("table", "changed", "parts"),
    [
        (torch.ones(5, 6), {"num_clusters": 6}, ["num_clusters=6", "5 tokens", "expected 1 to 5", "fewer clusters"]),
        (torch.ones(60, 6), {"rank": 7, "compression": None}, ["rank=7", "width 6", "expected 1 to 6"]),
        (torch.ones(3, 6), {}, ["compression=0.3", "3 x 6", "at least 21", "fewer clusters than 3"]),
    ],
)
def test_tables_too_small_for_the_options_are_refused(table: torch.Tensor, changed: dict, parts: list[str]) -> None:
    with pytest.raises(ValueError, match="expected") as error:
        factored(table, **changed)
    for part in parts:
        assert part in str(error.value)
