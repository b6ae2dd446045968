"""Ranks from a budget: how many coordinates a row may have so that the factors are small enough.

A factored table of n rows and width d stores j_i (n_i + d) numbers for each cluster i. Here all clusters share
one rank; ranks that differ by cluster are not chosen here.
"""

from __future__ import annotations


def uniform_rank(num_rows: int, dim: int, num_clusters: int, compression: float) -> int:
    """The largest rank for which k clusters fit the budget, j (n + k d) <= (1 - compression) n d.

    Args:
        num_rows: Rows of the table, n.
        dim: Width of the table, d.
        num_clusters: Number of clusters, k.
        compression: Share of the table's numbers to save, between 0 and 1.

    Returns:
        The rank j, 1 to dim.

    Raises:
        ValueError: If not even one coordinate a row fits.
    """
    budget = int((1 - compression) * num_rows * dim)
    cost_of_one = num_rows + num_clusters * dim
    rank = min(budget // cost_of_one, dim)
    if rank < 1:
        limit = 1 - cost_of_one / (num_rows * dim)
        way_out = (
            f"use compression <= {int(limit * 1000) / 1000} or fewer clusters"
            if limit > 0.001
            else f"use fewer clusters than {num_clusters}, or leave a table this small as it is"
        )
        raise ValueError(
            f"compression={compression} leaves {budget:,} numbers for a table of {num_rows:,} x {dim}; expected "
            f"at least {cost_of_one:,}, one coordinate for each token and one basis vector for each of "
            f"{num_clusters} clusters: {way_out}."
        )
    return rank
