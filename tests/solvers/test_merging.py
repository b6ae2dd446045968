"""Merging clusters: by hand, against every possible merge, and what it keeps."""

from itertools import combinations

import torch

from hf_projclust.solvers import Rows, adaptive_ranks, cluster, equal_ranks
from hf_projclust.solvers.merging import merge_clusters


def grams_of(clusters: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack([rows.T @ rows for rows in clusters])


def test_clusters_on_one_line_are_merged_and_one_across_it_is_not() -> None:
    along, across = torch.tensor([[1.0, 0.0]]).double(), torch.tensor([[0.0, 1.0]]).double()
    clusters = [along, across, 3 * along]
    merged = merge_clusters(grams_of(clusters), [1, 1, 1], 2, equal_ranks(1))
    assert merged[0] == merged[2] != merged[1]


def test_one_merge_is_the_best_of_all() -> None:
    generator = torch.Generator().manual_seed(0)
    clusters = [torch.randn(12, 6, generator=generator, dtype=torch.float64) for _ in range(5)]
    merged = merge_clusters(grams_of(clusters), [12] * 5, 4, equal_ranks(2))

    def cost(pair: tuple[int, int]) -> float:
        groups = [torch.cat([clusters[i] for i in pair]), *(clusters[i] for i in range(5) if i not in pair)]
        return sum(float(torch.linalg.svdvals(rows)[2:].square().sum()) for rows in groups)

    left, right = min(combinations(range(5), 2), key=cost)
    assert merged[left] == merged[right]
    assert len(merged.unique()) == 4


def test_clusters_without_rows_are_merged_into_others() -> None:
    grams = torch.zeros(4, 3, 3, dtype=torch.float64)
    grams[1], grams[3] = torch.eye(3).double(), 2 * torch.eye(3).double()
    merged = merge_clusters(grams, [0, 3, 0, 3], 2, adaptive_ranks(12))
    assert sorted(merged[[1, 3]].tolist()) == [0, 1]
    assert merged.max() == 1


def test_fewer_clusters_than_asked_for_are_left_as_they_are() -> None:
    assert merge_clusters(torch.eye(2).double().repeat(2, 1, 1), [2, 2], 5, equal_ranks(1)).tolist() == [0, 1]


def test_a_search_by_merged_starts_finds_subspaces_that_norms_do_not_tell_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    bases = [torch.linalg.qr(torch.randn(20, 3, generator=generator))[0].T for _ in range(4)]
    truth = torch.arange(240) % 4
    rows = torch.stack([torch.randn(3, generator=generator) @ bases[i] for i in truth.tolist()])
    found = cluster(Rows(rows), num_clusters=4, rule=lambda k: equal_ranks(3)).assignment
    assert all(len(found[truth == i].unique()) == 1 for i in range(4))
    assert len(found.unique()) == 4
