"""Which cluster a position is in, and numbers that each cluster has one of, as tensors on any device.

They come from Python numbers. A tensor that is made of those anew at each call waits for the device; one that is kept
as a buffer is lost where a model is built without memory. So a graph that is traced gets them as constants of
comparisons, and all else from a copy for each device, made once. This file travels with a checkpoint: it imports torch
only.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# A few numbers for each layout. None is ever dropped: a captured CUDA graph reads them where they are.
_ON_DEVICE: dict[tuple[tuple[int, ...], torch.device], Tensor] = {}


def is_traced(tensor: Tensor) -> bool:
    """Whether operations on a tensor make a graph, or have no values: what then depends on values cannot be had."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing() or tensor.is_meta or type(tensor) is not torch.Tensor


def clusters_at(positions: Tensor, ends: Sequence[int]) -> Tensor:
    """The cluster that each position is in, without a host synchronisation.

    Args:
        positions: Positions below the last end, shape (m,), whole numbers.
        ends: Where each cluster ends, k of them.

    Returns:
        Numbers of clusters, int64, shape (m,).
    """
    if is_traced(positions):
        return sum(((positions >= end).long() for end in ends[:-1]), torch.zeros_like(positions, dtype=torch.long))
    return torch.searchsorted(_on_device(ends, positions.device), positions.long(), right=True)


def of_clusters(values: Sequence[int], clusters: Tensor) -> Tensor:
    """The number that belongs to each of some clusters, without a host synchronisation.

    Args:
        values: A number for each cluster, k of them.
        clusters: Numbers of clusters, int64, shape (m,).

    Returns:
        ``values[cluster]`` of each, int64, shape (m,).
    """
    if is_traced(clusters):
        chosen = torch.full_like(clusters, values[0])
        for number in range(1, len(values)):
            chosen = chosen + (clusters >= number).long() * (values[number] - values[number - 1])
        return chosen
    return _on_device(values, clusters.device).index_select(0, clusters)


def ends_within(in_order: Tensor, ends: Sequence[int]) -> list[int]:
    """Where each cluster ends among positions that are in order, shape (m,), on the CPU."""
    return torch.searchsorted(in_order, _on_device(ends, in_order.device).to(in_order.dtype)).tolist()


def _on_device(values: Sequence[int], device: torch.device) -> Tensor:
    key = (tuple(values), device)
    if key not in _ON_DEVICE:
        # Made for more than inference, and by the first of several threads.
        with torch.inference_mode(False):
            _ON_DEVICE.setdefault(key, torch.tensor(key[0], dtype=torch.long, device=device))
    return _ON_DEVICE[key]
