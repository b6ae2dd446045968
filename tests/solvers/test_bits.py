"""Bits from a budget: bytes by hand, never above the budget, more of them never lose more, and what a code loses."""

from itertools import groupby

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_tables import quick, seeds

from hf_projclust.layout_projclust import BASIS_BITS, PER_BYTE, Band, PackedLayout
from hf_projclust.options import COEFFICIENT_BITS
from hf_projclust.solvers import bits
from hf_projclust.solvers.bits import LOST, VECTOR_BITS, cluster_bytes, codes_for, packed_bits, whole_bytes
from hf_projclust.solvers.codebooks import nearest_words, train_codebook
from hf_projclust.solvers.ranks import Allocation

ALL = list(LOST)
sizes_of_clusters = st.lists(st.integers(0, 3000), min_size=1, max_size=4).filter(any)
dims, decays = st.integers(1, 40), st.floats(0.3, 1.0)


def residuals_of(sizes: list[int], dim: int, decay: float, seed: int = 0) -> torch.Tensor:
    """What is left at each rank of spectra that fall, those of empty clusters included: rounding may leave some."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(len(sizes), dim, generator=generator, dtype=torch.float64) + 0.5
    energies = (decay ** torch.arange(dim).double() * noise).sort(descending=True).values
    energies *= torch.tensor(sizes).clamp(min=1).unsqueeze(1)
    left = energies.flip(1).cumsum(1).flip(1)
    return torch.cat([left, torch.zeros(len(sizes), 1, dtype=torch.float64)], dim=1)


def layout_of(found: Allocation, sizes: list[int], dim: int) -> PackedLayout:
    bands = [
        [Band(len(list(group)), number, VECTOR_BITS[number]) for number, group in groupby(codes)]
        for codes in found.per_byte
    ]
    return PackedLayout.of_bands(dim, sizes, bands)


def bytes_of(found: Allocation, sizes: list[int], dim: int, scale_bytes: int = 4) -> int:
    return sum(layout_of(found, sizes, dim).num_bytes(scale_bytes).values())


@pytest.mark.parametrize(
    ("counts", "most", "expected"),
    [
        ([5, 0, 0], 31, [5, 0, 0]),  # one a byte is whole always
        ([1, 3, 0], 31, [1, 4, 0]),  # the last band is rounded up: two bytes of two
        ([1, 3, 0], 4, [1, 3, 0]),  # but not above the most
        ([0, 3, 5], 31, [0, 4, 3]),  # the byte of two is filled from the next, whose own rest is dropped
        ([0, 3, 6], 31, [0, 4, 6]),  # two of three over are a byte
        ([0, 0, 1], 31, [0, 0, 0]),  # one of three is no byte
        ([0, 0, 2], 31, [0, 0, 3]),
        ([0, 1, 0], 31, [0, 2, 0]),
        ([4, 4, 6], 9, [4, 4, 1]),  # what is too much goes from the end
        ([4, 4, 6], 6, [4, 2, 0]),
        ([0, 0, 0], 31, [0, 0, 0]),
    ],
)
def test_whole_bytes_by_hand(counts: list[int], most: int, expected: list[int]) -> None:
    assert whole_bytes(counts, [1, 2, 3], most) == expected


def test_a_band_that_takes_all_of_the_next_is_the_last_and_is_rounded_too() -> None:
    counts = [0, 0, 0, 1, 1, 0, 0]  # one of four a byte, and one of six, which is stored with it: half a byte
    assert whole_bytes(counts, ALL, 31) == [0, 0, 0, 4, 0, 0, 0]
    assert whole_bytes([0, 0, 0, 0, 1, 1, 0], ALL, 31) == [0] * 7  # a third of one


@quick
@given(
    counts=st.lists(st.integers(0, 40), min_size=len(ALL), max_size=len(ALL)),
    known=st.integers(1, len(ALL)),
    most=st.integers(0, 200),
)
def test_bands_are_whole_bytes_but_the_last_and_coordinates_move_to_more_bits_only(
    counts: list[int], known: int, most: int
) -> None:
    counts, per_byte = counts[:known], ALL[:known]
    before = list(counts)
    found = whole_bytes(counts, per_byte, most)
    assert counts == before
    assert min(found) >= 0
    assert sum(found) <= most
    places = [place for place, count in enumerate(found) if count]
    assert all(found[place] % per_byte[place] == 0 for place in places[:-1])
    if places:
        last = places[-1]
        assert found[last] % per_byte[last] == 0 or sum(found) == most
    assert sum(found) >= min(sum(before), most) - per_byte[-1] / 2  # counts are lost at the end alone, by rounding
    for place in range(known):  # the first coordinates have at least the bits that they were given
        wanted = min(sum(before[: place + 1]), sum(found))
        assert sum(found[: place + 1]) >= wanted


@quick
@given(
    seed=seeds,
    sizes=sizes_of_clusters,
    dim=dims,
    decay=decays,
    share=st.floats(0.01, 1.0),
    scale_bytes=st.sampled_from([2, 4]),
)
def test_what_is_stored_is_never_above_the_budget(
    seed: int, sizes: list[int], dim: int, decay: float, share: float, scale_bytes: int
) -> None:
    budget = int(share * sum(sizes) * dim * scale_bytes)
    found = packed_bits(budget, scale_bytes)(residuals_of(sizes, dim, decay, seed), sizes)
    if budget < sum(sizes):
        assert found.ranks == [0] * len(sizes)
        return
    layout = layout_of(found, sizes, dim)
    assert bytes_of(found, sizes, dim, scale_bytes) <= budget
    assert tuple(found.ranks) == layout.cluster_ranks
    assert tuple(found.row_sizes) == layout.row_bytes
    assert all(rank < dim or dim == 0 for rank in found.ranks)
    assert all(rank == 0 for rank, size in zip(found.ranks, sizes, strict=True) if size == 0)
    for codes in found.per_byte:  # fewer bits with the eigenvalue
        assert codes == sorted(codes)
    for number, codes in enumerate(found.per_byte):
        assert found.lost[number].tolist() == pytest.approx(
            [*(LOST[code] for code in codes), *[1.0] * (dim - len(codes))]
        )


@quick
@given(seed=seeds, sizes=sizes_of_clusters, decay=st.floats(0.5, 1.0), share=st.floats(0.02, 0.2))
def test_more_bytes_lose_no_more(seed: int, sizes: list[int], decay: float, share: float) -> None:
    """Up to one byte a row, by which bands are rounded, and the codebooks that a larger budget may use."""
    dim = 24
    residuals = residuals_of(sizes, dim, decay, seed)
    budget = int(share * sum(sizes) * dim * 4)
    less, more = (packed_bits(one, 4)(residuals, sizes) for one in (budget, int(1.4 * budget) + sum(sizes) + 4000))
    assert more.left(residuals) <= less.left(residuals) * (1 + 1e-9)


def test_a_budget_is_used_and_a_large_one_gives_a_byte_to_each_coordinate() -> None:
    sizes, dim = [3000, 2000], 32
    residuals = residuals_of(sizes, dim, 0.8)
    for share in (0.05, 0.1, 0.2):
        budget = int(share * 5000 * dim * 4)
        assert bytes_of(packed_bits(budget, 4)(residuals, sizes), sizes, dim) > 0.8 * budget
    found = packed_bits(5000 * dim * 4, 4)(residuals, sizes)
    assert found.per_byte == [[1] * (dim - 1)] * 2


def test_clusters_of_more_energy_get_more() -> None:
    sizes, dim = [1000, 1000, 1000], 32
    residuals = residuals_of(sizes, dim, 0.8) * torch.tensor([[100.0], [1.0], [0.0]], dtype=torch.float64)
    found = packed_bits(40_000, 4)(residuals, sizes)
    assert found.row_sizes[0] > found.row_sizes[1] > found.row_sizes[2] == 0
    assert found.ranks[2] == 0


def test_empty_clusters_store_nothing_and_no_energy_gets_nothing() -> None:
    sizes, dim = [0, 1000, 0], 16
    found = packed_bits(10_000, 4)(residuals_of(sizes, dim, 0.8), sizes)
    assert (found.ranks[0], found.ranks[2]) == (0, 0)
    assert found.ranks[1] > 0
    found = packed_bits(10_000, 4)(torch.zeros(3, dim + 1, dtype=torch.float64), sizes)
    assert found.ranks == [0, 0, 0]
    assert found.left(torch.zeros(3, dim + 1)) == 0


def test_codebooks_take_an_eighth_of_a_budget_at_most() -> None:
    assert codes_for(0) == codes_for(4095) == [1]
    assert codes_for(8 * 256 * 2) == [1, 2]
    assert codes_for(8 * 256 * (2 + 3 + 2) - 1) == [1, 2]
    assert codes_for(8 * 256 * (2 + 3 + 2)) == [1, 2, 3]  # and that of pairs for bases in 4 bits
    assert codes_for(10**9) == ALL


@pytest.mark.parametrize("known", range(1, len(ALL) + 1))
def test_bytes_of_a_cluster_are_those_of_its_layout(known: int) -> None:
    per_byte, dim = ALL[:known], 41
    counts = [5, 4, 3, 4, 6, 8, 2][:known]
    bands = [Band(count, number, VECTOR_BITS[number]) for count, number in zip(counts, per_byte, strict=True)]
    layout = PackedLayout.of_bands(dim, [77], [bands])
    sizes = layout.num_bytes(2)
    assert cluster_bytes(counts, per_byte, 77, dim, 2) == sizes["coefficients"] + sizes["bases"] + sizes["scales"]
    assert bits.codebook_bytes(per_byte) == sizes["codebooks"]


# What a code loses.


def test_numbers_a_byte_and_bits_of_bases_are_those_that_a_layout_may_have() -> None:
    assert tuple(LOST) == tuple(VECTOR_BITS) == PER_BYTE
    assert set(VECTOR_BITS.values()) <= set(BASIS_BITS)
    assert set(COEFFICIENT_BITS.values()) <= set(PER_BYTE)


def test_one_number_a_byte_loses_what_is_said() -> None:
    """Steps of 1/24 of a deviation, 127 of them on each side: a 12th of a step squared."""
    normal = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    steps = (normal * 24).round().clamp(-127, 127) / 24
    # A step of 1/24 is for rows whose largest number fits; their scale is larger for it by a share.
    assert float((normal - steps).square().mean()) == pytest.approx(LOST[1], rel=0.4)
    assert float((normal - steps).square().mean()) <= LOST[1]


@pytest.mark.parametrize("number", [2, 3, 4, 6, 8, 16])
def test_words_of_normal_samples_lose_what_is_said(number: int) -> None:
    generator = torch.Generator().manual_seed(0)
    samples, fresh = torch.randn(2, 2**15, number, generator=generator)
    words = train_codebook(samples, torch.ones(len(samples)), 24, generator).float() / 24
    # Samples lose less than others, the fewer there are for a word.
    lost = sum(float((some - words[nearest_words(some, words)]).square().mean()) for some in (samples, fresh)) / 2
    from_basis = 0.0088 if VECTOR_BITS[number] == 4 else 0  # that of a basis in pairs comes on top
    assert lost + from_basis == pytest.approx(LOST[number], rel=0.06)
