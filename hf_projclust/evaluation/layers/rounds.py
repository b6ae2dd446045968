"""Calls timed in rounds: the first one of each round, the others after it in an order that rotates.

What is slow takes part in the first rounds only, so that one contender cannot make a benchmark last for hours.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

LEAST_ROUNDS = 5
_LEAST_SECONDS = 0.002  # of a batch of calls, which the clock then resolves
_MOST_SECONDS = 0.5  # of all rounds of one call

Call = Callable[[int], Any]


@dataclass(frozen=True)
class Timed:
    """How long a call took.

    Attributes:
        calls: Calls that were timed together in a round.
        seconds: Of one call, in each round that it took part in: the first ones.
    """

    calls: int
    seconds: tuple[float, ...]


def time_in_rounds(calls: Mapping[str, Call], rounds: int, device: torch.device) -> dict[str, Timed]:
    """Time several calls side by side.

    Args:
        calls: What to time; each is given the number of its call, counted from 0 in each batch. The first one takes
            part in every round. Each should have been called before.
        rounds: Rounds, at most: fewer, but ``LEAST_ROUNDS`` unless less are asked for, of what would take longer than
            half a second in all.
        device: Where the calls compute.

    Returns:
        By the same names, in the same order.
    """
    batches, limits = {}, {}
    first, *others = calls
    for name, call in calls.items():
        batches[name], seconds = _batch(call, device)
        limits[name] = min(rounds, max(LEAST_ROUNDS, math.floor(_MOST_SECONDS / seconds)))
    seconds_of: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(limits[first]):
        turn = number % max(len(others), 1)
        for name in (first, *others[turn:], *others[:turn]):
            if number < limits[name]:
                seconds = _seconds(calls[name], batches[name], device)
                seconds_of[name].append(seconds / batches[name])
    return {name: Timed(batches[name], tuple(seconds)) for name, seconds in seconds_of.items()}


def _batch(call: Call, device: torch.device) -> tuple[int, float]:
    """The calls that last long enough for the clock, and how long they last, by the best of three.

    A single try on a busy machine would let a slow moment pass for a slow call.
    """
    calls = 1
    while True:
        best = math.inf
        for _ in range(3):
            best = min(best, _seconds(call, calls, device))
            if best > _MOST_SECONDS:
                break
        if best >= _LEAST_SECONDS:
            return calls, best
        calls *= 2


def _seconds(call: Call, calls: int, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begin = time.perf_counter()
    for number in range(calls):
        call(number)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin
