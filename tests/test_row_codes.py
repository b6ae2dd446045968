"""Bytes of rows: by hand, scales of any size, rows of zeros, last words that are not full, and what is lost."""

from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_tables import quick, random_table, seeds

from hf_projclust.layout_projclust import Band
from hf_projclust.row_codes import as_words, decode_rows, encode_rows, rough_scales, scale_of, split_bands
from hf_projclust.solvers.codebooks import train_codebook

ONE = [Band(4, 1, 8)]
# The share that normally distributed coordinates lose, with room for the scale of rows.
MOST_LOST = {1: 0.002, 2: 0.02, 3: 0.07, 4: 0.13, 6: 0.24, 8: 0.34, 16: 0.6}


@cache
def normal() -> dict[int, torch.Tensor]:
    """Codebooks of normal samples by the length of their words; made when a test first asks, since it takes seconds."""
    return {
        width: train_codebook(
            random_table(8192, width, width).float(), torch.ones(8192), 24, torch.Generator().manual_seed(0)
        )
        for width in (2, 3, 4, 6, 8, 16)
    }


def coded(coordinates: torch.Tensor, bands: list[Band], energies: torch.Tensor | None = None) -> torch.Tensor:
    energies = torch.ones(coordinates.shape[1]).to(coordinates) if energies is None else energies
    return encode_rows(coordinates, energies, bands, normal())


def lost(coordinates: torch.Tensor, bands: list[Band], energies: torch.Tensor | None = None) -> torch.Tensor:
    """Share of the energy of each row that is lost, shape (m,)."""
    decoded = decode_rows(coded(coordinates, bands, energies), bands, normal()).to(coordinates)
    return (decoded - coordinates).square().sum(dim=1) / coordinates.square().sum(dim=1)


def test_one_number_a_byte_by_hand() -> None:
    rows = torch.tensor([[1.0, -1.0, 1.0, -1.0], [2.0, 2.0, -2.0, 2.0], [0.0, 0.0, 0.0, 0.0]])
    found = coded(rows, ONE)
    # Scales of 1 and 2, which are bytes of 128 and 144; 24 steps, and -24 as a byte.
    assert found.tolist() == [[128, 24, 232, 24, 232], [144, 24, 24, 232, 24], [0, 0, 0, 0, 0]]
    assert found.dtype == torch.uint8
    assert torch.equal(decode_rows(found, ONE, {}), rows)


def test_a_word_by_hand() -> None:
    book = torch.zeros(256, 2, dtype=torch.int8)
    book[1], book[2], book[3] = torch.tensor([24, 24]), torch.tensor([-24, 24]), torch.tensor([24, 0])
    bands = [Band(3, 2, 8)]
    rows = torch.tensor([[4.0, 4.0, 4.0]])  # a word and a half: the nearest to (1, 0) is the third
    found = encode_rows(rows, torch.ones(3), bands, {2: book})
    assert found.tolist() == [[128 + 2 * 16, 1, 3]]
    assert torch.equal(decode_rows(found, bands, {2: book}), rows)


def test_scales_are_steps_of_a_sixteenth_of_two_and_zero_stands_for_nothing() -> None:
    assert scale_of(torch.tensor([0, 128, 144, 112, 129], dtype=torch.uint8)).tolist() == pytest.approx(
        [1.0, 1.0, 2.0, 0.5, 2 ** (1 / 16)]
    )
    rows = torch.tensor([[1.0, 1.0], [0.0, 0.0], [1e-15, 0.0], [1e30, 1e30]])
    assert rough_scales(rows, [Band(2, 2, 8)]).flatten().tolist() == [128, 0, 1, 255]


@pytest.mark.parametrize("per_byte", [1, 2, 3, 4, 6, 8, 16])
def test_a_row_of_zeros_is_exactly_zero(per_byte: int) -> None:
    bands = [Band(5, per_byte, 8)]
    found = coded(torch.zeros(3, 5), bands)
    assert not found[:, 0].any()
    assert torch.equal(decode_rows(found, bands, normal()), torch.zeros(3, 5))


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e-3, 1.0, 100.0, 1e10, 1e30])
@pytest.mark.parametrize("per_byte", [1, 2, 4, 16])
def test_rows_of_any_size_give_finite_numbers_and_those_within_reach_lose_little(per_byte: int, size: float) -> None:
    """A scale is a byte: from 1/245 to 245 deviations of the cluster."""
    bands = [Band(32, per_byte, 8)]
    rows = random_table(200, 32).float() * size
    decoded = decode_rows(coded(rows, bands), bands, normal())
    assert decoded.isfinite().all()
    if 1e-2 <= size <= 150 / 2:
        assert float(lost(rows, bands).mean()) < MOST_LOST[per_byte]
    if size <= 1e-20:
        assert float(decoded.abs().max()) < 0.05  # smaller than what any row of the cluster is likely to lose
    if size >= 1e10:
        assert float((decoded * rows).sum(dim=1).min()) > 0


@pytest.mark.parametrize("per_byte", [1, 2, 3, 4, 6, 8, 16])
def test_normal_rows_lose_what_their_codes_lose(per_byte: int) -> None:
    rows = random_table(1000, 48).float()
    assert float(lost(rows, [Band(48, per_byte, 8)]).mean()) < MOST_LOST[per_byte]


@quick
@given(
    seed=seeds,
    counts=st.lists(st.tuples(st.integers(1, 17), st.sampled_from([1, 2, 3, 4, 6, 8, 16])), min_size=1, max_size=4),
    num_rows=st.integers(0, 9),
)
def test_any_bands_are_encoded_in_their_bytes_and_decoded_in_their_order(
    seed: int, counts: list[tuple[int, int]], num_rows: int
) -> None:
    bands = [Band(count, per_byte, 8) for count, per_byte in counts]
    rank = sum(band.num_coordinates for band in bands)
    rows = random_table(num_rows, rank, seed).float()
    found = coded(rows, bands)
    assert found.shape == (num_rows, 1 + sum(band.num_bytes for band in bands))
    decoded = decode_rows(found, bands, normal())
    assert decoded.shape == (num_rows, rank)
    assert decoded.isfinite().all()
    for band, part, original in zip(bands, split_bands(decoded, bands), split_bands(rows, bands), strict=True):
        if band.per_byte == 1:
            # half a step of the scale that holds the largest number of the row in these bands
            steps = scale_of(found[:, :1]) / 24
            assert ((part - original).abs() <= 0.51 * steps + 0.13 * original.abs().amax(dim=1, keepdim=True)).all()


def test_numbers_of_one_byte_are_within_half_a_step() -> None:
    rows = random_table(500, 8).float()
    found = coded(rows, [Band(8, 1, 8)])
    decoded, steps = decode_rows(found, [Band(8, 1, 8)], {}), scale_of(found[:, :1]) / 24
    assert ((decoded - rows).abs() <= 0.5001 * steps).float().mean() > 0.99  # a fitted scale may cut the largest
    # A row with one large number has its scale by that.
    peak = torch.tensor([[30.0, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1]])
    assert float((decode_rows(coded(peak, [Band(8, 1, 8)]), [Band(8, 1, 8)], {}) - peak).abs().max()) < 30 / 127


def test_the_scale_of_a_row_is_fitted_by_what_coordinates_count() -> None:
    rows = random_table(2000, 16).float() * torch.tensor([1.0, 1.3]).repeat_interleave(8)
    energies = torch.tensor([100.0, 1.0]).repeat_interleave(8)
    bands = [Band(16, 8, 8)]

    def weighted(found: torch.Tensor) -> float:
        return float((decode_rows(found, bands, normal()) - rows).square().sum(dim=0) @ energies)

    assert weighted(coded(rows, bands, energies)) < weighted(coded(rows, bands))


def test_the_last_word_is_filled_up_with_zeros() -> None:
    assert as_words(torch.tensor([[1.0, 2.0, 3.0]]), 2).tolist() == [[[1.0, 2.0], [3.0, 0.0]]]
    assert as_words(torch.ones(2, 4), 4).shape == (2, 1, 4)
    assert as_words(torch.ones(2, 1), 16).shape == (2, 1, 16)
    rows = random_table(400, 7).float()
    whole, partial = (lost(rows[:, :count], [Band(count, 6, 8)]).mean() for count in (6, 7))
    assert partial < whole + 0.02  # one coordinate of its own word loses little


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_of_any_precision_are_encoded_alike(dtype: torch.dtype) -> None:
    rows = random_table(100, 12)
    bands = [Band(4, 1, 8), Band(8, 4, 8)]
    found = coded(rows.to(dtype), bands)
    assert (found == coded(rows.float(), bands)).float().mean() > 0.99
