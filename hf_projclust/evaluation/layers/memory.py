"""Memory of a layer: what it holds, and what a call takes beyond that.

Both are of torch's tensors; what a library allocates by itself is not seen.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.profiler import profile
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


def resident_bytes(module: nn.Module) -> int:
    """Bytes of all tensors that a module holds: parameters, buffers, and attributes of these such as scales.

    Args:
        module: A layer of any library.

    Returns:
        Bytes; memory that several tensors share counts once.
    """
    storages: dict[int, int] = {}
    seen: set[int] = set()

    def visit(value: Any) -> None:
        is_code = isinstance(value, type) or (callable(value) and not isinstance(value, nn.Module))
        if id(value) in seen or is_code:
            return
        seen.add(id(value))
        if isinstance(value, Tensor):
            tensor: Any = value
            if is_traceable_wrapper_subclass(tensor):
                parts = [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]
            else:
                storage = tensor.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
                parts = list(vars(tensor).values())
        elif isinstance(value, dict):
            parts = list(value.values())
        elif isinstance(value, list | tuple | set):
            parts = list(value)
        else:
            parts = list(getattr(value, "__dict__", {}).values())
        for part in parts:
            visit(part)

    visit(module)
    return sum(storages.values())


def peak_bytes(call: Callable[[], Any], device: torch.device) -> int:
    """The most bytes of tensors that a call held beyond those before it; what it returns is among them.

    Args:
        call: What to measure; it is called once.
        device: Where it computes.

    Returns:
        Bytes.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with _quiet(), profile(profile_memory=True) as profiled:
        call()
    events: Any = profiled.kineto_results
    changes = (event.nbytes() for event in events.events() if event.name() == "[memory]")
    return max(accumulate(changes, initial=0))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the lines that the profiler writes to standard error, past Python, at its begin and end."""
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
