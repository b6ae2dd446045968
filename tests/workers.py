"""How many processes share the tests by `pytest -n auto`, and how many threads torch may take in each of them.

Read before torch is imported, whose threads are counted then. Without pytest-xdist, or without `-n`, nothing changes.
"""

import os
from typing import Any

import psutil
import pytest

BYTES_A_WORKER = 3 * 2**30  # a bit more than one that it holds, and up to four processes that a test starts
MOST_WORKERS = 6  # since a container may have fewer cores and less memory than can be seen from within


def usable_cores() -> int:
    """Cores that this process may run on, which a container may have fewer of than the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: Any) -> int | None:
    """One worker a core, as far as memory allows; what PYTEST_XDIST_AUTO_NUM_WORKERS says comes first."""
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None
    return max(1, min(usable_cores(), MOST_WORKERS, psutil.virtual_memory().available // BYTES_A_WORKER))


if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    threads = max(1, usable_cores() // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # for the processes that tests start, too
