"""Tables that are like a vocabulary's, drawn at random: for measurements that need no model."""

from __future__ import annotations

import torch
from torch import Tensor


def synthetic_table(num_rows: int, dim: int, num_clusters: int, *, seed: int = 0) -> Tensor:
    """A table like a vocabulary's: a union of subspaces with decaying spectra, noise, and norms that vary.

    Each subspace has half the table's width and is drawn at random. The coordinates of a row in its subspace are
    normal, with a variance that falls as 1 / (1 + number of the coordinate); normal noise in all directions adds a
    fifth of their energy. Norms are then log-normal with a spread of 0.27, that of all-MiniLM-L6-v2's table.

    Args:
        num_rows: Rows, n.
        dim: Width, d, 2 or more.
        num_clusters: Subspaces, k, each with about n / k of the rows.
        seed: Equal seeds give equal tables.

    Returns:
        Rows in random order, shape (n, dim), float32.
    """
    generator = torch.Generator().manual_seed(seed)
    rank = dim // 2
    scales = torch.arange(1, rank + 1).rsqrt()  # (rank,)
    assignment = torch.randint(num_clusters, (num_rows,), generator=generator)
    rows = torch.randn(num_rows, dim, generator=generator) * (0.2 * scales.square().sum() / dim).sqrt()
    for number in range(num_clusters):
        basis = torch.linalg.qr(torch.randn(dim, rank, generator=generator))[0].T  # (rank, dim)
        is_member = assignment == number
        rows[is_member] += torch.randn(int(is_member.sum()), rank, generator=generator) * scales @ basis
    norms = (0.27 * torch.randn(num_rows, 1, generator=generator)).exp()
    return rows * norms / rows.norm(dim=1, keepdim=True)
