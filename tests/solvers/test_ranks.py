"""Ranks: never over the budget, nothing more that fits, and the best there is where the budget is met."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_projclust.solvers.ranks import (
    adaptive_ranks,
    number_budget,
    stored_numbers,
    uniform_rank,
)

quick = settings(max_examples=100, deadline=None, derandomize=True)
seeds, dims = st.integers(0, 10**6), st.integers(1, 7)
sizes_of_clusters = st.lists(st.integers(0, 40), min_size=1, max_size=5)


def random_residuals(sizes: list[int], dim: int, seed: int) -> torch.Tensor:
    """Sums of falling eigenvalues, as many of them above 0 as a cluster has rows, shape (k, dim + 1)."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(len(sizes), dim, generator=generator, dtype=torch.float64).pow(6).sort(descending=True).values
    values *= torch.arange(dim) < torch.tensor(sizes).unsqueeze(1)
    left = values.flip(1).cumsum(1).flip(1)
    return torch.cat([left, torch.zeros(len(sizes), 1, dtype=torch.float64)], dim=1)


def at(values: torch.Tensor, ranks: list[int]) -> float:
    """Sum of the entries at the rank of each cluster."""
    return float(sum(row[rank] for row, rank in zip(values, ranks, strict=True)))


def test_stored_numbers_by_hand() -> None:
    # Three rows of width 2: one coordinate each and a basis vector are 5; at full rank the rows themselves, 6.
    assert stored_numbers([3, 0, 1], 2).tolist() == [[0, 5, 6], [0, 0, 0], [0, 3, 2]]


@pytest.mark.parametrize(
    ("budget", "ranks"),
    [
        (0, [0, 0]),
        (13, [0, 0]),  # one coordinate is 10 rows + 4 entries of a basis vector = 14
        (14, [1, 0]),  # gains 6
        (28, [2, 0]),  # gains 3 more
        (42, [2, 1]),  # gains 2 rather than 0.75
        (54, [4, 1]),  # rank 4 stores 40, less than 42 at rank 3
        (80, [4, 4]),
        (10**9, [4, 4]),
    ],
)
def test_ranks_of_two_clusters_by_hand(budget: int, ranks: list[int]) -> None:
    residuals = torch.tensor([[10.0, 4.0, 1.0, 0.25, 0.0], [3.0, 1.0, 0.6, 0.3, 0.0]], dtype=torch.float64)
    assert adaptive_ranks(budget)(residuals, [10, 10]).ranks == ranks


@quick
@given(seed=seeds, dim=dims, sizes=sizes_of_clusters, share=st.floats(0, 1.5))
def test_adaptive_ranks_never_store_more_than_the_budget_and_no_further_rank_fits(
    seed: int, dim: int, sizes: list[int], share: float
) -> None:
    residuals, stored = random_residuals(sizes, dim, seed), stored_numbers(sizes, dim).double()
    budget = int(share * sum(sizes) * dim)
    found = adaptive_ranks(budget)(residuals, sizes)
    ranks, price = found.ranks, found.price
    left = budget - at(stored, ranks)
    assert left >= 0
    assert price >= 0
    for number, rank in enumerate(ranks):
        for higher in range(rank + 1, dim + 1):
            gain = residuals[number, rank] - residuals[number, higher]
            fits = stored[number, higher] - stored[number, rank] <= left
            assert gain <= 1e-12 * residuals[:, 0].sum() or not fits


@quick
@given(
    seed=seeds, dim=st.integers(1, 4), sizes=st.lists(st.integers(1, 30), min_size=1, max_size=3), log=st.floats(-8, 0)
)
def test_where_a_price_meets_the_budget_the_ranks_are_the_best_of_all(
    seed: int, dim: int, sizes: list[int], log: float
) -> None:
    residuals, stored = random_residuals(sizes, dim, seed), stored_numbers(sizes, dim).double()
    budget = int(at(stored, (residuals + 10**log * stored).argmin(dim=1).tolist()))
    every = itertools.product(range(dim + 1), repeat=len(sizes))
    best = min(at(residuals, list(ranks)) for ranks in every if at(stored, list(ranks)) <= budget)
    ranks = adaptive_ranks(budget)(residuals, sizes).ranks
    assert at(residuals, ranks) == pytest.approx(best, abs=1e-9)


@quick
@given(
    seed=seeds, dim=st.integers(1, 4), sizes=st.lists(st.integers(1, 30), min_size=1, max_size=3), share=st.floats(0, 1)
)
def test_ranks_leave_no_more_than_the_best_and_the_price_of_what_the_price_leaves_free(
    seed: int, dim: int, sizes: list[int], share: float
) -> None:
    residuals, stored = random_residuals(sizes, dim, seed), stored_numbers(sizes, dim).double()
    budget = int(share * sum(sizes) * dim)
    found = adaptive_ranks(budget)(residuals, sizes)
    ranks, price = found.ranks, found.price
    every = itertools.product(range(dim + 1), repeat=len(sizes))
    best = min(at(residuals, list(other)) for other in every if at(stored, list(other)) <= budget)
    at_the_price = (residuals + price * stored).argmin(dim=1).tolist()
    free = budget - at(stored, at_the_price)
    assert at(residuals, ranks) <= best + price * free + 1e-9


def test_a_small_cluster_of_full_energy_is_kept_as_it_is_and_a_faint_one_gets_nothing() -> None:
    # Two rows of width 8 are 16 numbers as they are, and 10 for one coordinate: rank 8 costs less than rank 2.
    residuals = torch.zeros(3, 9, dtype=torch.float64)
    residuals[0, :2] = torch.tensor([50.0, 20.0])
    residuals[1, :8] = torch.tensor([40.0, 5.0, 4.0, 3.0, 2.0, 1.5, 1.0, 0.5])
    residuals[2, :8] = torch.arange(8, 0, -1) * 1e-6
    found = adaptive_ranks(16 + 108)(residuals, [2, 100, 100])
    ranks, price = found.ranks, found.price
    assert ranks == [8, 1, 0]
    assert price > 0


def test_tables_without_energy_get_no_ranks() -> None:
    found = adaptive_ranks(10**6)(torch.zeros(2, 5, dtype=torch.float64), [9, 9])
    assert (found.ranks, found.tolls) == ([0, 0], [0.0, 0.0])


def test_clusters_without_rows_get_no_ranks() -> None:
    residuals = torch.tensor([[9.0, 4.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    ranks = adaptive_ranks(10**6)(residuals, [50, 0]).ranks
    assert ranks == [3, 0]


def test_clusters_without_rows_get_no_ranks_though_rounding_left_them_energy() -> None:
    residuals = torch.tensor([[9.0, 4.0, 1.0, 0.0], [1e-13, 1e-14, 1e-15, 0.0]], dtype=torch.float64)
    ranks = adaptive_ranks(120)(residuals, [50, 0]).ranks
    assert ranks == [2, 0]


@quick
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


def test_the_budget_is_not_one_number_short_by_rounding() -> None:
    assert number_budget(50, 10, 0.9) == 50
    assert number_budget(50, 10, 0.8) == 100


def test_uniform_rank_by_hand() -> None:
    assert number_budget(100, 20, 0.4) == 1200
    assert uniform_rank(100, 20, 2, 0.4) == 8  # 8 x (100 + 2 x 20) = 1,120, and 9 would be 1,260


@pytest.mark.parametrize(
    ("num_rows", "dim", "k", "compression", "parts"),
    [
        # 50 + 5 x 10 = 100 numbers a coordinate of 500: 0.8 leaves exactly one, 0.875 none
        (
            50,
            10,
            5,
            0.875,
            ["compression=0.875", "62 numbers", "50 x 10", "at least 100", "compression <= 0.8", "fewer"],
        ),
        (10, 10, 20, 0.5, ["50 numbers", "at least 210", "fewer clusters than 20"]),  # no compression would do
        (10_000, 2, 3, 0.6, ["8,000 numbers", "10,000 x 2", "at least 10,006", "compression <= 0.499"]),
    ],
)
def test_a_budget_below_one_coordinate_is_refused_with_a_way_out(
    num_rows: int, dim: int, k: int, compression: float, parts: list[str]
) -> None:
    with pytest.raises(ValueError, match="leaves") as error:
        uniform_rank(num_rows, dim, k, compression)
    for part in parts:
        assert part in str(error.value)


def test_the_compression_that_an_error_proposes_is_accepted() -> None:
    with pytest.raises(ValueError, match=r"compression <= 0\.8") as error:
        uniform_rank(50, 10, 5, 0.81)
    proposed = float(str(error.value).split("compression <= ")[1].split(" ")[0])
    assert uniform_rank(50, 10, 5, proposed) == 1
