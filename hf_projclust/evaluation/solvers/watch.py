"""Time, rounds and memory of a piece of work, on the CPU or on CUDA."""

from __future__ import annotations

import contextlib
import ctypes
import math
import threading
import time
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import psutil
import torch

_SAMPLE_SECONDS = 0.01


class Watch:
    """Time, rounds and memory of the statements under it; a thread samples the memory of the process.

    Args:
        device: Where is computed.
        show: Called after each round.

    Attributes:
        seconds: Time from entry to exit.
        marks: Seconds and error after each round.
        peak_bytes: The most memory above the level at entry.
    """

    def __init__(self, device: torch.device, show: Callable[[], Any]) -> None:
        """Measure nothing yet."""
        self.device, self.show = device, show
        self.seconds, self.peak_bytes = 0.0, 0
        self.marks: list[tuple[float, float]] = []
        self._process, self._is_over = psutil.Process(), threading.Event()
        self._sampler = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Watch:
        """Begin."""
        with contextlib.suppress(AttributeError, OSError, TypeError):
            ctypes.CDLL(None).malloc_trim(0)  # glibc: else memory that is free but held would hide what is taken
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            self._level_before = torch.cuda.memory_allocated(self.device)
        else:
            self._level_before = self._process.memory_info().rss
            self._sampler.start()
        self._begin = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        """End."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds = time.perf_counter() - self._begin
        if self.device.type == "cuda":
            self.peak_bytes = torch.cuda.max_memory_allocated(self.device) - self._level_before
        else:
            self._is_over.set()
            self._sampler.join()

    def mark(self, error: float) -> None:
        """Note the end of a round, with its relative error; infinity of a round that has none."""
        self.marks.append((time.perf_counter() - self._begin, error))
        self.show()

    def curve(self) -> list[tuple[float, float]]:
        """Seconds and the least error so far, after each round that has one."""
        least = accumulate((error for _, error in self.marks), min)
        found = zip(self.marks, least, strict=True)
        return [(seconds, error) for (seconds, _), error in found if math.isfinite(error)]

    def _sample(self) -> None:
        while True:
            self.peak_bytes = max(self.peak_bytes, self._process.memory_info().rss - self._level_before)
            if self._is_over.wait(_SAMPLE_SECONDS):
                return
