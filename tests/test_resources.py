"""What a run may use: sizes as they are written, blocks that fit, and every refusal."""

import pytest

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
