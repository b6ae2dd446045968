"""Starts: bands and neighbourhoods by hand and by seed, and clusters that lost all their rows."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_projclust.solvers.empty_clusters import _is_not_last_of_its_cluster, fill_empty_clusters
from hf_projclust.solvers.rows import Rows
from hf_projclust.solvers.starts import neighbourhoods, norm_bands, random_split
from hf_projclust.solvers.subspaces import squared_distances

quick = settings(max_examples=60, deadline=None, derandomize=True)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_norm_bands_by_hand() -> None:
    norms = torch.tensor([5.0, 1.0, 3.0, 4.0, 2.0])
    assert norm_bands(norms, 2).tolist() == [1, 0, 0, 1, 0]
    assert norm_bands(norms, 5).tolist() == [4, 0, 2, 3, 1]
    assert norm_bands(norms, 1).tolist() == [0] * 5


@quick
@given(num_rows=st.integers(1, 50), k=st.integers(1, 9), seed=st.integers(0, 10**6), distinct=st.integers(1, 50))
def test_norm_bands_are_of_equal_size_and_in_order(num_rows: int, k: int, seed: int, distinct: int) -> None:
    norms = torch.randint(distinct, (num_rows,), generator=generator(seed)).double()
    bands = norm_bands(norms, k)
    sizes = torch.bincount(bands, minlength=k)
    assert sizes.max() - sizes.min() <= 1
    assert bands[norms.argsort(stable=True)].diff().ge(0).all()  # ties are split by place


def test_random_splits_are_of_equal_sizes_and_differ() -> None:
    first, second = (random_split(11, 4, generator(seed)) for seed in (0, 1))
    assert torch.bincount(first).tolist() == torch.bincount(second).tolist() == [3, 3, 3, 2]
    assert not torch.equal(first, second)
    assert torch.equal(first, random_split(11, 4, generator(0)))


def test_neighbourhoods_are_orthonormal_and_have_no_rows_yet() -> None:
    rows = Rows(torch.randn(70, 6, dtype=torch.float64, generator=generator(0)), block_rows=9)
    fit = neighbourhoods(rows, 3, 2, generator(1))
    assert fit.vectors.shape == (3, 6, 6)
    assert fit.vectors.dtype == torch.float64
    eye = torch.eye(6, dtype=torch.float64).expand(3, 6, 6)
    torch.testing.assert_close(fit.vectors @ fit.vectors.mT, eye, atol=1e-12, rtol=0)
    assert fit.assignment.tolist() == [-1] * 70
    assert (fit.ranks, fit.allocation.tolls, fit.cost) == ([2, 2, 2], [0.0, 0.0, 0.0], float("inf"))


def test_neighbourhoods_depend_on_the_seed_alone() -> None:
    table = torch.randn(70, 6, generator=generator(0))
    first, again, other = (neighbourhoods(Rows(table), 3, 2, generator(seed)) for seed in (7, 7, 8))
    assert torch.equal(first.vectors, again.vectors)
    assert not torch.equal(first.vectors, other.vectors)


def test_neighbourhoods_find_lines_at_right_angles_whichever_row_is_drawn_first() -> None:
    table = torch.eye(4, dtype=torch.float64).repeat(10, 1) * torch.arange(1, 41, dtype=torch.float64).unsqueeze(1)
    for seed in range(10):
        fit = neighbourhoods(Rows(table), 4, 1, generator(seed))
        distances = squared_distances(table, fit.vectors, fit.allocation)
        assert sorted(distances.argmin(dim=1)[:4].tolist()) == [0, 1, 2, 3]
        assert distances.min(dim=1).values.max() < 1e-9


def test_neighbourhoods_of_a_sample_are_those_of_its_rows(monkeypatch) -> None:
    monkeypatch.setattr("hf_projclust.solvers.starts.SAMPLE_ROWS", 5)
    table = torch.zeros(200, 3, dtype=torch.float64)
    kept = torch.randperm(200, generator=generator(3))[:5]
    table[kept, 0] = 1.0
    table[table[:, 0] == 0, 1] = 100.0  # rows out of the sample, which would win if they were seen
    fit = neighbourhoods(Rows(table), 1, 1, generator(3))
    assert fit.vectors[0, 0].abs().tolist() == [1.0, 0.0, 0.0]


def test_neighbourhoods_of_few_zero_or_huge_rows_are_finite() -> None:
    for table in (
        torch.zeros(9, 4),
        torch.ones(2, 4),
        torch.randn(3, 4),
        torch.cat([torch.zeros(5, 4), torch.ones(1, 4)]),
    ):
        for rank in (0, 1, 4):
            fit = neighbourhoods(Rows(table), 2, rank, generator(0))
            assert fit.vectors.isfinite().all()


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


@quick
@given(
    num_rows=st.integers(1, 40),
    k=st.integers(1, 10),
    used=st.integers(1, 10),
    rank=st.integers(1, 6),
    seed=st.integers(0, 10**6),
)
def test_no_cluster_stays_empty_while_rows_last_and_none_gets_more_than_its_rank(
    num_rows: int, k: int, used: int, rank: int, seed: int
) -> None:
    before = torch.randint(min(used, k), (num_rows,), generator=generator(seed))
    distances = torch.rand(num_rows, generator=generator(seed + 1))
    inputs = before.clone(), distances.clone()
    after = fill_empty_clusters(before, distances, k, rank)
    old, new = torch.bincount(before, minlength=k), torch.bincount(after, minlength=k)
    assert (new > 0).sum() == min(k, num_rows)
    assert new[old == 0].max().item() <= rank if (old == 0).any() else torch.equal(before, after)
    moved = after != before
    assert (old[after[moved]] == 0).all()  # rows move into empty clusters only
    assert torch.equal(before, inputs[0])
    assert torch.equal(distances, inputs[1])
