"""Words of product quantisation: exact where there are enough, weighted, nearest, and the same for a seed."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_tables import quick, random_table, seeds

from hf_projclust.solvers.codebooks import WORDS, nearest_words, train_codebook

STEPS = 24


def trained(samples: torch.Tensor, weights: torch.Tensor | None = None, seed: int = 0) -> torch.Tensor:
    """Words in the units of the samples."""
    weights = torch.ones(len(samples)).to(samples) if weights is None else weights
    return train_codebook(samples, weights, STEPS, torch.Generator().manual_seed(seed)).to(samples) / STEPS


def error(samples: torch.Tensor, words: torch.Tensor, weights: torch.Tensor | None = None) -> float:
    squared = (samples - words[nearest_words(samples, words)]).square().sum(dim=1)
    return float(squared.mean() if weights is None else (squared @ weights) / weights.sum())


@quick
@given(seed=seeds, num_samples=st.integers(0, 60), width=st.integers(1, 16))
def test_the_nearest_word_is_that_of_all_distances(seed: int, num_samples: int, width: int) -> None:
    samples, words = random_table(num_samples, width, seed), random_table(WORDS, width, seed + 1)
    found = nearest_words(samples, words)
    distances = (samples.unsqueeze(1) - words).square().sum(dim=2)
    assert found.shape == (num_samples,)
    assert found.dtype == torch.int64
    torch.testing.assert_close(distances.gather(1, found.unsqueeze(1)).squeeze(1), distances.min(dim=1).values)


def test_blocks_of_samples_are_as_one() -> None:
    samples, words = random_table(40_000, 2).float(), random_table(WORDS, 2, 1).float()
    expected = torch.cat([nearest_words(part, words) for part in samples.split(999)])
    assert torch.equal(nearest_words(samples, words), expected)


@pytest.mark.parametrize("distinct", [1, 2, 100, WORDS])
def test_as_many_samples_as_words_are_exact_on_the_grid(distinct: int) -> None:
    """Also where each is there several times: words without samples take others."""
    generator = torch.Generator().manual_seed(0)
    places = torch.randperm(51 * 51, generator=generator)[:distinct]
    samples = torch.stack([places // 51 - 25, places % 51 - 25], dim=1).float() / STEPS
    assert error(samples, trained(samples)) == pytest.approx(0, abs=1e-12)
    repeated = samples.repeat(3, 1)
    allowed = 1e-12 if 3 * distinct <= WORDS else 0.05 * error(samples, samples.mean(dim=0).repeat(WORDS, 1))
    assert error(repeated, trained(repeated)) <= allowed


def test_words_are_whole_steps_of_a_byte_and_far_samples_are_cut() -> None:
    samples = torch.tensor([[100.0, -100.0], [0.5, 0.02], [float(2**20), 0.0]])
    words = train_codebook(samples, torch.ones(3), STEPS, torch.Generator().manual_seed(0))
    assert words.dtype == torch.int8
    assert words.shape == (WORDS, 2)
    assert {(127, -127), (12, 0), (127, 0)} <= {tuple(word) for word in words.tolist()}


@pytest.mark.parametrize("width", [1, 2, 3, 4, 6, 8, 16])
def test_words_are_better_than_samples_taken_at_random(width: int) -> None:
    samples = random_table(4000, width).float()
    words = trained(samples)
    assert error(samples, words) < 0.93 * error(samples, samples[torch.randperm(4000)[:WORDS]])
    fresh = random_table(4000, width, 1).float()
    assert error(fresh, words) < 0.97 * error(fresh, samples[:WORDS])


def test_words_are_the_weighted_means_of_their_samples() -> None:
    samples = random_table(3000, 3).float()
    weights = torch.rand(3000, generator=torch.Generator().manual_seed(0))
    words = trained(samples, weights)
    nearest = nearest_words(samples, words)
    for word in range(0, WORDS, 16):
        own = nearest == word
        if own.any():
            mean = (samples[own] * weights[own].unsqueeze(1)).sum(dim=0) / weights[own].sum()
            assert float((mean - words[word]).abs().max()) < 0.15  # rounds are ended before it is settled


def test_samples_of_more_weight_lose_less() -> None:
    samples = random_table(6000, 4).float()
    weights = torch.where(torch.arange(6000) < 1000, 100.0, 1.0)
    plain, weighted = trained(samples), trained(samples, weights)
    assert error(samples, weighted, weights) < error(samples, plain, weights)
    assert error(samples[:1000], weighted) < 0.8 * error(samples[:1000], plain)


def test_samples_without_weight_are_ignored_where_others_have_it() -> None:
    far = random_table(5000, 2).float() + 4
    near = torch.tensor([[0.5, 0.25], [-0.5, 0.25]]).repeat(50, 1)
    samples = torch.cat([far, near])
    words = trained(samples, torch.cat([torch.zeros(5000), torch.ones(100)]))
    assert error(near, words) < 0.01


def test_no_samples_one_sample_and_no_weight_at_all() -> None:
    empty = train_codebook(torch.zeros(0, 3), torch.zeros(0), STEPS, torch.Generator())
    assert empty.shape == (WORDS, 3)
    assert empty.dtype == torch.int8
    assert not empty.any()
    one = torch.tensor([[0.5, -0.25, 1.0]])
    assert error(one, trained(one)) == 0
    samples = random_table(1000, 3).float()
    words = trained(samples, torch.zeros(1000))
    assert words.isfinite().all()
    assert error(samples, words) < 3


def test_a_seed_gives_equal_words_and_another_seed_others() -> None:
    samples = random_table(3000, 4).float()
    assert torch.equal(trained(samples, seed=3), trained(samples, seed=3))
    assert not torch.equal(trained(samples, seed=3), trained(samples, seed=4))


def test_of_many_samples_some_are_looked_at() -> None:
    samples = random_table(2**16 + 5000, 1).float()
    assert error(samples, trained(samples)) < 1e-3
