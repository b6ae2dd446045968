"""Bits from a budget of bytes: which coordinates each cluster keeps, and in how many bits each of them is stored.

Transform coding of the rows of each cluster along its eigenvectors, by product quantisation: a byte stands for 1, 2, 3,
4, 6, 8 or 16 coordinates. A coordinate takes the code of the least lost energy + price * bytes, its basis vector
included, so that ranks, bits and (as rows pay for what their cluster gives them) clusters follow from one price, which
is found by bisection. How words are chosen and bytes are written is not decided here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .codebooks import WORDS
from .ranks import Allocation, RankRule

# Share of its energy that a normally distributed coordinate loses by k-means of 256 words for so many coordinates; of
# one, by steps of 1/24 of its deviation. All but the first two also lose what a basis in 4 bits loses.
LOST = {1: 0.0002, 2: 0.0088, 3: 0.052, 4: 0.108, 6: 0.228, 8: 0.334, 16: 0.592}
VECTOR_BITS = {1: 8, 2: 8, 3: 4, 4: 4, 6: 4, 8: 4, 16: 4}
_BISECTIONS = 50


def packed_bits(budget_bytes: int, scale_bytes: int) -> RankRule:
    """Bits for each coordinate of each cluster, so that all together lose the least energy that the budget allows.

    Args:
        budget_bytes: Bytes that the table may take in all.
        scale_bytes: Bytes of the scale of a coordinate.

    Returns:
        A rule. The bytes that its bands take are never above the budget, unless not even the clusters of tokens fit.
        It keeps fewer coordinates than the table is wide.
    """

    def choose(residuals: Tensor, sizes: list[int]) -> Allocation:
        allowed = codes_for(budget_bytes)
        found = allocate(residuals, sizes, allowed)
        used = sorted({number for numbers in found.per_byte or [] for number in numbers})
        if not used or codebook_bytes(used) == codebook_bytes(allowed):
            return found
        # What codebooks that no coordinate uses would have taken is spent.
        return min(found, allocate(residuals, sizes, used), key=lambda allocation: allocation.left(residuals))

    def allocate(residuals: Tensor, sizes: list[int], per_byte: list[int]) -> Allocation:
        kept_bytes = budget_bytes - codebook_bytes(per_byte)
        dim = residuals.shape[1] - 1
        energies = (residuals[:, :-1] - residuals[:, 1:]) * (torch.tensor(sizes) > 0).unsqueeze(1)
        lost = torch.tensor([1.0, *(LOST[number] for number in per_byte)]).double()
        a_row = torch.tensor([0.0, *(1 / number for number in per_byte)]).double()
        a_vector = torch.tensor([0.0, *(vector_bytes(number, dim, scale_bytes) for number in per_byte)]).double()
        stored = torch.tensor(sizes).double().unsqueeze(1) * a_row + a_vector  # (k, codes)
        losses = energies.unsqueeze(2) * lost  # (k, dim, codes)

        def bands_at(price: float) -> list[list[int]]:
            chosen = (losses + price * stored.unsqueeze(1)).argmin(dim=2)  # (k, dim)
            counts = torch.nn.functional.one_hot(chosen, len(lost)).sum(dim=1)[:, 1:].tolist()
            return [whole_bytes(count, per_byte, dim - 1) for count in counts]

        total = float(energies.sum())
        low, high = total * 1e-18, total
        for _ in range(_BISECTIONS if total > 0 else 0):
            middle = (low * high) ** 0.5
            taken = sum(sizes) + sum(
                cluster_bytes(bands, per_byte, size, dim, scale_bytes)
                for bands, size in zip(bands_at(middle), sizes, strict=True)
            )
            low, high = (low, middle) if taken <= kept_bytes else (middle, high)
        bands = bands_at(high)
        codes = [[number for count, number in zip(row, per_byte, strict=True) for _ in range(count)] for row in bands]
        shares = torch.ones(len(sizes), dim, dtype=torch.float64)
        for row, numbers in zip(shares, codes, strict=True):
            row[: len(numbers)] = torch.tensor([LOST[number] for number in numbers])
        sizes_of_rows = [row_bytes(row, per_byte) for row in bands]
        return Allocation([len(numbers) for numbers in codes], high, sizes_of_rows, shares, codes)

    return choose


def codes_for(budget_bytes: int) -> list[int]:
    """Coordinates a byte that may be used: codebooks take at most an eighth of the bytes."""
    return [
        number for number in LOST if codebook_bytes([other for other in LOST if other <= number]) * 8 <= budget_bytes
    ]


def codebook_bytes(per_byte: list[int]) -> int:
    """Bytes of the codebooks: one number a byte needs none, and bases in 4 bits have one of pairs."""
    of_bases = 2 if any(VECTOR_BITS[number] == 4 for number in per_byte) else 0
    return WORDS * (sum(number for number in per_byte if number > 1) + of_bases)


def vector_bytes(number: int, dim: int, scale_bytes: int) -> int:
    """Bytes of a basis vector of coordinates of which a byte holds a number, and of their scale."""
    return -(-dim * VECTOR_BITS[number] // 8) + scale_bytes


def row_bytes(bands: list[int], per_byte: list[int]) -> int:
    """Bytes of a row: its scale, and a band for each number of coordinates a byte."""
    return sum(-(-count // number) for count, number in zip(bands, per_byte, strict=True)) + (sum(bands) > 0)


def cluster_bytes(bands: list[int], per_byte: list[int], size: int, dim: int, scale_bytes: int) -> int:
    """Bytes of a cluster: of its rows, and of the vectors of its basis with their scales."""
    vectors = (count * vector_bytes(number, dim, scale_bytes) for count, number in zip(bands, per_byte, strict=True))
    return size * row_bytes(bands, per_byte) + sum(vectors)


def whole_bytes(counts: list[int], per_byte: list[int], most: int) -> list[int]:
    """Fill up the last byte of each band with coordinates of the next ones, which are stored in more bits by that.

    Args:
        counts: Coordinates of each band.
        per_byte: Coordinates a byte of each band, rising.
        most: Coordinates of all bands together, at most.

    Returns:
        Coordinates of each band. The last band is rounded to whole bytes, up or down, or ends at ``most``.
    """
    counts = list(counts)
    last = max((place for place, count in enumerate(counts) if count), default=-1)
    for place in range(last):
        wanted = -counts[place] % per_byte[place]
        for later in range(place + 1, last + 1):
            moved = min(wanted, counts[later])
            counts[place], counts[later], wanted = counts[place] + moved, counts[later] - moved, wanted - moved
    last = max((place for place, count in enumerate(counts) if count), default=-1)  # it may have given all away
    if last >= 0:
        over = counts[last] % per_byte[last]
        counts[last] += -over if 2 * over < per_byte[last] else (per_byte[last] - over)
    excess = sum(counts) - most
    for place in range(last, -1, -1):
        dropped = min(max(excess, 0), counts[place])
        counts[place], excess = counts[place] - dropped, excess - dropped
    return counts
