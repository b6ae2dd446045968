"""Bytes of basis vectors in 16, 8 and 4 bits: how near they come, and that they are read as they were written."""

import pytest
import torch
from random_tables import random_basis, random_table
from torch import nn

from hf_projclust.basis_codes import RoundedVectors, round_vectors, train_pairs
from hf_projclust.embedding_projclust import factor_in_place
from hf_projclust.layout_projclust import BASIS_BITS, Band, PackedLayout

DIM = 33  # odd: a vector of pairs has half a byte over
every_bits = pytest.mark.parametrize("bits", BASIS_BITS)


def vectors_of(rank: int = 6, dim: int = DIM) -> torch.Tensor:
    """Vectors of lengths over some orders of magnitude."""
    return random_basis(rank, dim).float() * torch.logspace(-3, 2, rank).unsqueeze(1)


def rounded(vectors: torch.Tensor, bits: int) -> RoundedVectors:
    return round_vectors(vectors, bits, train_pairs([vectors], torch.Generator().manual_seed(0)))


def relative_errors(vectors: torch.Tensor, found: RoundedVectors) -> torch.Tensor:
    rebuilt = found.numbers * found.scales.unsqueeze(1)
    return (rebuilt - vectors).square().sum(dim=1) / vectors.square().sum(dim=1)


def test_bytes_by_hand() -> None:
    vectors = torch.tensor([[2.0, -1.0, 0.0]])
    eight = round_vectors(vectors, 8, torch.zeros(256, 2))
    assert eight.codes.tolist() == [127, 256 - 64, 0]
    assert eight.scales.tolist() == [2.0]
    sixteen = round_vectors(vectors, 16, torch.zeros(256, 2))
    # The low byte first: 32767 is 0x7fff, -16384 is 0xc000.
    assert sixteen.codes.tolist() == [0xFF, 0x7F, 0x00, 0xC0, 0x00, 0x00]
    pairs = torch.zeros(256, 2, dtype=torch.int8)
    pairs[5], pairs[7] = torch.tensor([37, -19]), torch.tensor([0, 19])
    four = round_vectors(vectors, 4, pairs)
    assert four.codes[0] == 5
    assert len(four.codes) == 2
    assert four.numbers[0, 0] == 37 / 127


@pytest.mark.parametrize(("bits", "most"), [(16, 1e-8), (8, 2e-4), (4, 0.02)])
def test_rounding_keeps_vectors_of_any_length_within_bounds(bits: int, most: float) -> None:
    vectors = vectors_of()
    found = rounded(vectors, bits)
    assert float(relative_errors(vectors, found).max()) < most
    assert found.codes.dtype == torch.uint8
    assert len(found.codes) == 6 * Band(6, 1, bits).vector_bytes(DIM)
    if bits > 4:  # half a step of the largest number
        steps = vectors.abs().amax(dim=1, keepdim=True) / (2 ** (bits - 1) - 1)
        difference = (found.numbers * found.scales.unsqueeze(1) - vectors).abs()
        assert (difference <= 0.5001 * steps + 1e-7 * vectors.abs().amax(dim=1, keepdim=True)).all()
        assert torch.equal(found.scales, vectors.abs().amax(dim=1))
    assert float(found.numbers.abs().max()) <= 1


def test_pairs_of_many_vectors_lose_what_the_rule_of_bits_counts_for_them() -> None:
    vectors = random_table(512, 64).float()
    assert float(relative_errors(vectors, rounded(vectors, 4)).mean()) == pytest.approx(0.0088, rel=0.15)


@every_bits
def test_the_table_reads_the_numbers_that_were_written(bits: int) -> None:
    vectors = vectors_of()
    parts = [vectors[:2], vectors[2:]]
    pairs = train_pairs(parts, torch.Generator().manual_seed(0))
    found = [round_vectors(part, bits, pairs) for part in parts]
    table = nn.Embedding(3, DIM)
    layout = PackedLayout.of_bands(DIM, [3], [[Band(2, 1, bits), Band(4, 2, bits)]])
    factor_in_place(table, layout)
    with torch.no_grad():
        table.bases.copy_(torch.cat([part.codes for part in found]))
        if bits == 4:
            table.codebooks[-512:].copy_(pairs.flatten())  # behind the words of two
    [(_, stored)] = table.blocks()
    expected = torch.cat([part.numbers for part in found])
    torch.testing.assert_close(table.unpack_basis(0, stored), expected, atol=1e-7, rtol=0)
    torch.testing.assert_close(table.all_bases(), expected, atol=1e-7, rtol=0)


@pytest.mark.parametrize("bits", [16, 8])
def test_every_value_of_a_byte_is_read_as_it_was_written(bits: int) -> None:
    largest = 2 ** (bits - 1) - 1
    numbers = torch.arange(-largest, largest + 1, max(1, largest // 127)).float()
    vectors = torch.cat([numbers, torch.tensor([float(largest)])]).unsqueeze(0)
    found = round_vectors(vectors, bits, torch.zeros(256, 2))
    table = nn.Embedding(2, vectors.shape[1])
    factor_in_place(table, PackedLayout.of_bands(vectors.shape[1], [2], [[Band(1, 1, bits)]]))
    read = table.unpack_basis(0, found.codes)
    torch.testing.assert_close(read * largest, vectors, atol=1e-2, rtol=0)
    torch.testing.assert_close(read, found.numbers, atol=1e-7, rtol=0)


@every_bits
def test_vectors_of_zeros_are_zeros(bits: int) -> None:
    vectors = torch.zeros(2, DIM)
    found = rounded(vectors, bits)
    assert not (found.numbers * found.scales.unsqueeze(1)).any()
    assert found.scales.isfinite().all()
    assert (found.scales >= 0).all()


@pytest.mark.parametrize("bits", [16, 8])
def test_no_vectors_give_no_bytes(bits: int) -> None:
    found = round_vectors(torch.zeros(0, DIM), bits, torch.zeros(256, 2, dtype=torch.int8))
    assert found.codes.numel() == found.scales.numel() == 0
    assert found.numbers.shape == (0, DIM)


def test_no_vectors_in_pairs_give_words_of_zeros_and_a_seed_gives_equal_words() -> None:
    assert not train_pairs([], torch.Generator()).any()
    vectors = [random_table(50, DIM).float()]
    words = [train_pairs(vectors, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(words[0], words[1])
    assert not torch.equal(words[0], words[2])
    assert words[0].shape == (256, 2)
