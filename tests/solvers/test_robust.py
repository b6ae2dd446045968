"""Robust fits: Lewis weights by their equation, l_p coordinates by brute force, subspaces among gross outliers."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_tables import quick, random_basis, random_table, seeds

from hf_projclust.solvers import ProjectiveClustering, Rows, cluster, equal_ranks, lp_coefficients
from hf_projclust.solvers.robust import lewis_fit, lewis_weights


def with_outliers(bases: list[torch.Tensor], rows_each: int, magnitude: float, seed: int) -> torch.Tensor:
    """Rows in subspaces with a little noise, of which 5 % are replaced by Gaussian rows that are as much larger."""
    rank, dim = bases[0].shape
    table = torch.cat([random_table(rows_each, rank, seed + 10 + i) @ basis for i, basis in enumerate(bases)])
    table += 0.01 * random_table(len(table), dim, seed + 1)
    outlying = torch.randperm(len(table), generator=torch.Generator().manual_seed(seed))[: len(table) // 20]
    table[outlying] = magnitude * random_table(len(outlying), dim, seed + 2)
    return table


def fitted(table: torch.Tensor, k: int, rank: int, p: float, num_starts: int = 2) -> ProjectiveClustering:
    return cluster(Rows(table), num_clusters=k, rule=lambda k: equal_ranks(rank), p=p, num_starts=num_starts)


def angle(found: torch.Tensor, true: torch.Tensor) -> float:
    """Sine of the largest principal angle between two subspaces."""
    return float(torch.linalg.matrix_norm(true - true @ found.T @ found, ord=2))


def worst_angle(result: ProjectiveClustering, bases: list[torch.Tensor]) -> float:
    """The largest angle of a subspace to the nearest that was found."""
    return max(min(angle(found, true) for found in result.bases) for true in bases)


@pytest.mark.parametrize("p", [1.0, 1.25, 1.5, 1.9])
@pytest.mark.parametrize("rank", [2, 5])
def test_lewis_weights_satisfy_their_equation_and_sum_to_the_rank(p: float, rank: int) -> None:
    table = random_table(60, rank) @ random_table(rank, 5, 1)
    table[:4] *= 30
    weights, gram = lewis_weights(Rows(table, block_rows=7), p)
    a, t = table.numpy(), weights.numpy()
    expected_gram = a.T @ np.diag(t ** (1 - 2 / p)) @ a
    np.testing.assert_allclose(gram.numpy(), expected_gram, rtol=1e-9, atol=1e-9 * expected_gram.max())
    inverse = np.linalg.pinv(expected_gram, rcond=1e-10)
    expected = np.array([(row @ inverse @ row) ** (p / 2) for row in a])
    np.testing.assert_allclose(t, expected, rtol=2e-3)
    assert weights.sum() == pytest.approx(rank, rel=2e-3)


def test_lewis_weights_near_two_are_leverage_scores() -> None:
    table = random_table(40, 4)
    q = np.linalg.qr(table.numpy())[0]
    weights, _ = lewis_weights(Rows(table), 1.999)
    np.testing.assert_allclose(weights.numpy(), (q**2).sum(axis=1), rtol=1e-2)


@pytest.mark.parametrize("p", [1.0, 1.5])
def test_lewis_weights_do_not_depend_on_the_basis_of_the_columns(p: float) -> None:
    table, mix = random_table(50, 4), random_table(4, 4, 1) + 3 * torch.eye(4, dtype=torch.float64)
    plain, mixed = (lewis_weights(Rows(rows), p)[0] for rows in (table, table @ mix))
    torch.testing.assert_close(plain, mixed, rtol=1e-8, atol=1e-12)


def test_lewis_weights_by_hand() -> None:
    # In one dimension t_r = |a_r|^p / sum of |a|^p, since t^(1 - 2/p) a^2 is then the same multiple of |a|^p.
    table = torch.tensor([[1.0], [-2.0], [0.0], [5.0]], dtype=torch.float64)
    weights, _ = lewis_weights(Rows(table), 1.0)
    torch.testing.assert_close(
        weights, torch.tensor([0.125, 0.25, 0, 0.625], dtype=torch.float64), rtol=1e-3, atol=1e-9
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lewis_fit_of_odd_tables_is_finite(dtype: torch.dtype) -> None:
    single = torch.zeros(9, 4)
    single[3, 2] = 7
    for table in (torch.zeros(9, 4), torch.ones(9, 4), single, torch.eye(4), random_table(2, 4)):
        fit = lewis_fit(Rows(table.to(dtype)), equal_ranks(2), 1.0)
        assert fit.vectors.isfinite().all()
        assert fit.ranks == [2]
        assert fit.assignment.tolist() == [0] * len(table)


def test_coefficients_at_two_are_the_projection() -> None:
    rows, basis = random_table(20, 6), random_basis(3, 6, 1)
    assert torch.equal(lp_coefficients(rows, basis, 2.0), rows @ basis.T)


@quick
@given(
    seed=seeds,
    p=st.floats(1, 1.99),
    dim=st.integers(2, 7),
    rank=st.integers(0, 7),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    exponent=st.integers(-12, 9),
)
def test_coefficients_never_have_a_larger_error_than_the_projection(
    seed: int, p: float, dim: int, rank: int, dtype: torch.dtype, exponent: int
) -> None:
    rows = (random_table(15, dim, seed).pow(3) * 10.0**exponent).to(dtype)
    basis = random_basis(min(rank, dim), dim, seed + 1).to(dtype)
    before = rows.clone()
    found = lp_coefficients(rows, basis, p)
    error, projected = rows - found @ basis, rows - rows @ basis.T @ basis
    assert found.shape == (15, min(rank, dim))
    assert (error.abs().pow(p).sum(dim=1) <= projected.abs().pow(p).sum(dim=1) * (1 + 1e-5)).all()
    assert torch.equal(rows, before)


@quick
@given(seed=seeds, dim=st.integers(2, 8))
def test_at_one_a_coordinate_in_one_direction_is_the_weighted_median(seed: int, dim: int) -> None:
    rows, basis = random_table(12, dim, seed), random_basis(1, dim, seed + 1)
    found = rows - lp_coefficients(rows, basis, 1.0) @ basis
    candidates = (rows / basis).unsqueeze(2)  # (12, dim, 1): the error has its kinks where an entry is met
    best = (rows.unsqueeze(1) - candidates * basis).abs().sum(dim=2).min(dim=1).values
    projected = (rows - rows @ basis.T @ basis).abs().sum(dim=1)
    assert (found.abs().sum(dim=1) >= best * (1 - 1e-9)).all()
    assert (found.abs().sum(dim=1) - best <= 0.02 * best + 1e-9).all()
    assert found.abs().sum() <= projected.sum()


def test_at_one_a_gross_entry_is_left_out_of_the_coordinate() -> None:
    basis = torch.full((1, 5), 5**-0.5, dtype=torch.float64)
    row = torch.tensor([[2.0, 2, 2, 2, 1000]], dtype=torch.float64)
    assert float(lp_coefficients(row, basis, 1.0)) == pytest.approx(2 * 5**0.5, rel=1e-3)  # 2 in each entry


def test_coefficients_of_rows_in_the_subspace_are_exact_at_any_p() -> None:
    basis, expected = random_basis(3, 6), random_table(9, 3, 1)
    for p in (1.0, 1.3, 1.8, 2.0):
        torch.testing.assert_close(lp_coefficients(expected @ basis, basis, p), expected)


def test_coefficients_of_no_rows_and_of_zero_rows() -> None:
    basis = random_basis(2, 4)
    assert lp_coefficients(torch.zeros(0, 4, dtype=torch.float64), basis, 1.0).shape == (0, 2)
    assert lp_coefficients(torch.zeros(3, 4, dtype=torch.float64), basis, 1.0).tolist() == [[0.0, 0.0]] * 3


@pytest.mark.parametrize("magnitude", [3.0, 5.0, 10.0])
@pytest.mark.parametrize("seed", [0, 100])
def test_a_planted_subspace_is_recovered_among_outliers_where_svd_is_bent(magnitude: float, seed: int) -> None:
    true = random_basis(3, 20, seed)
    table = with_outliers([true], 400, magnitude, seed)
    robust, plain = fitted(table, 1, 3, p=1.0), fitted(table, 1, 3, p=2.0)
    assert angle(robust.bases[0], true) < 0.03
    assert angle(plain.bases[0], true) > 0.5

    def error(basis: torch.Tensor, p: float) -> float:
        return float((table - lp_coefficients(table, basis, p) @ basis).abs().sum())

    assert error(robust.bases[0], 1.0) < 0.8 * error(plain.bases[0], 2.0)
    assert error(robust.bases[0], 1.0) < 0.85 * error(plain.bases[0], 1.0)


@pytest.mark.parametrize("seed", [0, 100])
def test_two_planted_subspaces_are_recovered_among_outliers_where_squares_are_bent(seed: int) -> None:
    true = [random_basis(2, 20, seed), random_basis(2, 20, seed + 1)]
    table = with_outliers(true, 200, 5.0, seed)
    assert worst_angle(fitted(table, 2, 2, p=1.0, num_starts=5), true) < 0.03
    assert worst_angle(fitted(table, 2, 2, p=2.0, num_starts=5), true) > 0.5


def test_without_outliers_the_robust_subspace_is_near_that_of_svd() -> None:
    true = random_basis(3, 10)
    table = random_table(300, 3) @ true + 0.01 * random_table(300, 10, 1)
    assert angle(fitted(table, 1, 3, p=1.0).bases[0], fitted(table, 1, 3, p=2.0).bases[0]) < 0.01
