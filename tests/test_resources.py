"""What a run may use: sizes as they are written, blocks that fit, and every refusal."""

import pytest
import torch

from hf_projclust.resources import Resources


@pytest.mark.parametrize("limit", ["much", "-1GB", 0, -5, "", True])
def test_a_limit_that_is_no_size_is_refused(limit: object) -> None:
    with pytest.raises(ValueError, match=r"memory_limit=.*expected bytes, or a size"):
        Resources(device=None, memory_limit=limit, checkpoint=None)  # type: ignore[arg-type]


def test_blocks_shrink_with_the_limit() -> None:
    limits = [
        Resources(device=None, memory_limit=limit, checkpoint=None).block_rows(10_000, 64, 4)
        for limit in ("20MB", "40MB")
    ]
    assert None not in limits
    assert 256 <= limits[0] < limits[1]
    assert Resources(device=None, memory_limit=None, checkpoint=None).block_rows(10_000, 64, 4) is None


@pytest.mark.parametrize(
    ("limit", "size_bytes"),
    [
        ("1000000000", 10**9),  # digits alone, as a command line gives them
        ("1GB", 10**9),
        ("1gb", 10**9),
        ("500MiB", 500 * 2**20),
        (10**9, 10**9),
    ],
)
def test_a_limit_is_read_as_bytes(limit: int | str, size_bytes: int) -> None:
    assert Resources(device=None, memory_limit=limit, checkpoint=None).memory_limit == size_bytes


@pytest.mark.parametrize("device", ["meta", torch.device("meta"), "moon"])
def test_a_device_that_computes_nothing_is_refused(device: str | torch.device) -> None:
    with pytest.raises(ValueError, match=r"device=.*(meta|moon).* cannot be used here .*expected one that.*Leave it"):
        Resources(device=device, memory_limit=None, checkpoint=None)
