"""Random tables and bases for the tests of solvers, and how many examples those of a property draw."""

import torch
from hypothesis import settings
from hypothesis import strategies as st

quick = settings(max_examples=40, deadline=None, derandomize=True)
seeds = st.integers(0, 10**6)


def random_table(num_rows: int, dim: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(num_rows, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def random_basis(rank: int, dim: int, seed: int = 0) -> torch.Tensor:
    return torch.linalg.qr(random_table(dim, rank, seed)).Q.T
