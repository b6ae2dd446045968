"""Counts that are given as numbers."""

import pytest
import torch

from hf_projclust.token_counts import count_tokens


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.float16, torch.bfloat16, torch.float64])
def test_given_counts_become_shares(dtype: torch.dtype) -> None:
    given = torch.tensor([3, 0, 1, 4], dtype=dtype)
    shares = count_tokens(given, None, 4)
    assert shares.tolist() == [0.375, 0, 0.125, 0.5]
    assert shares.dtype == torch.float64
    assert given.tolist() == [3, 0, 1, 4]
    assert count_tokens(given.tolist(), None, 4).tolist() == shares.tolist()
    if dtype != torch.bfloat16:
        assert count_tokens(given.numpy(), None, 4).tolist() == shares.tolist()
