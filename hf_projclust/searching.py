"""Which clusters are looked for: the numbers of them to try, and the rules of their ranks and bits, from the options.

A table that cannot be factored as asked is refused here, before anything is computed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import groupby

from .layout_projclust import MOST_PACKED_CLUSTERS, Band
from .options import COEFFICIENT_BITS, FactoringOptions
from .solvers import ProjectiveClustering, RankRule, Table, adaptive_ranks, equal_ranks
from .solvers.bits import VECTOR_BITS, packed_bits
from .solvers.ranks import number_budget, uniform_rank

# Bases of more clusters would take over a ninth of the stored numbers: the weighted error may still fall a little,
# but sentence embeddings (WikiText-2, MRPC) no longer come nearer.
ROWS_A_BASIS_ROW = 8
LEAST_ROW_BYTES = 3  # its cluster, its scale, and one byte of coordinates
LEAST_VECTORS = 16
_BITS_OF_A_START = 4  # of a number, in the search for clusters that comes before that for bits


def bands_of(clustering: ProjectiveClustering, options: FactoringOptions) -> list[list[Band]]:
    """How the coordinates of each cluster are stored in few bits: as was found under a budget, or as was asked for."""
    if clustering.per_byte is not None:
        grouped = [[(number, len(list(equal))) for number, equal in groupby(codes)] for codes in clustering.per_byte]
        return [[Band(count, number, VECTOR_BITS[number]) for number, count in bands] for bands in grouped]
    per_byte = COEFFICIENT_BITS[options.coefficient_bits or 8]
    ranks = [len(basis) for basis in clustering.bases]
    return [[Band(rank, per_byte, options.basis_bits or 8)] if rank else [] for rank in ranks]


@dataclass(frozen=True)
class Search:
    """Which clusters are looked for.

    Attributes:
        counts: Numbers of clusters to try.
        rule: The rule of ranks for each of them.
        final_rule: The rule of ranks and bits by which the search goes on, under a budget of bytes.
    """

    counts: list[int]
    rule: Callable[[int], RankRule]
    final_rule: RankRule | None = None


def search_of(table: Table, options: FactoringOptions) -> Search:
    """The search for the clusters of a table, refusing one that cannot be factored as asked."""
    num_tokens, dim = table.shape
    if options.is_packed and isinstance(options.num_clusters, int) and options.num_clusters > MOST_PACKED_CLUSTERS:
        raise ValueError(
            f"num_clusters={options.num_clusters} in few bits; expected at most {MOST_PACKED_CLUSTERS}. Use fewer "
            "clusters."
        )
    if not options.has_byte_budget:
        counts, rule = clusters_to_try(num_tokens, dim, options)
        return Search([k for k in counts if not options.is_packed or k <= MOST_PACKED_CLUSTERS], rule)
    budget, dense = byte_budget(table, options), num_tokens * dim * table.dtype.itemsize
    least = num_tokens * LEAST_ROW_BYTES + LEAST_VECTORS * dim
    if dim == 1 or not least <= budget < dense:
        raise ValueError(
            f"{budget:,} bytes for a table of {num_tokens:,} x {dim}, which takes {dense:,}; expected at least "
            f"{least:,}, fewer than it takes, and a width above 1. Give "
            + ("a smaller ratio, or more bytes." if budget < least else "fewer bytes, or leave it dense.")
        )
    numbers = min(budget * 8 // _BITS_OF_A_START, num_tokens * dim * 4 // 5)
    as_numbers = replace(options, ratio=None, table_bytes=None, compression=1 - numbers / (num_tokens * dim))
    counts, rule = clusters_to_try(num_tokens, dim, as_numbers)
    return Search([k for k in counts if k <= MOST_PACKED_CLUSTERS], rule, packed_bits(budget, table.dtype.itemsize))


def byte_budget(table: Table, options: FactoringOptions) -> int:
    """Bytes that a table may take in few bits."""
    if options.ratio is None:
        return int(options.table_bytes or 0)
    return int(table.shape[0] * table.shape[1] * table.dtype.itemsize / options.ratio)


def clusters_to_try(
    num_tokens: int, dim: int, options: FactoringOptions
) -> tuple[list[int], Callable[[int], RankRule]]:
    """Numbers of clusters to try and the rule of their ranks, refusing a table that cannot be factored as asked."""
    compression, rank = options.compression, options.rank
    if rank is not None and rank > dim:
        raise ValueError(
            f"rank={rank} for a table of width {dim}; expected 1 to {dim}. Use a smaller rank, or give "
            "compression instead."
        )
    if isinstance(options.num_clusters, int) and options.num_clusters > num_tokens:
        raise ValueError(
            f"num_clusters={options.num_clusters} for a vocabulary of {num_tokens:,} tokens; expected 1 to "
            f"{num_tokens:,}. Use fewer clusters."
        )
    counts = [options.num_clusters] if isinstance(options.num_clusters, int) else [1]
    if rank is not None:
        return counts, lambda k: equal_ranks(rank)
    if compression is None:
        raise ValueError("neither compression nor rank is given; expected one of them.")
    smallest = 1 if options.adaptive_ranks else counts[0]
    uniform_rank(num_tokens, dim, smallest, compression)  # raises where not even one coordinate a row fits
    budget = number_budget(num_tokens, dim, compression)
    most = num_tokens // (dim * ROWS_A_BASIS_ROW)
    if not options.adaptive_ranks:
        most = min(most, (budget - num_tokens) // dim)
    while options.num_clusters == "auto" and 2 * counts[-1] <= most:
        counts.append(2 * counts[-1])
    if options.adaptive_ranks:
        return counts, lambda k: adaptive_ranks(budget)
    return counts, lambda k: equal_ranks(uniform_rank(num_tokens, dim, k, compression))
