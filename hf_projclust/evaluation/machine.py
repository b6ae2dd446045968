"""What was measured on: a line for the caption of a table or a plot."""

from __future__ import annotations

import os
import platform
from importlib import metadata

import psutil
import torch


def describe_machine(device: str | None = None) -> str:
    """Processors, device and versions, in one line, for the caption of a benchmark.

    Args:
        device: Where was computed; the CPU by default.

    Returns:
        Such as "8 CPUs, 4 threads, device cpu, PyTorch 2.13.0, Python 3.11.7".
    """
    where = torch.device(device or "cpu")
    name = f"{where} ({torch.cuda.get_device_name(where)})" if where.type == "cuda" else str(where)
    return (
        f"{os.cpu_count()} CPUs, {torch.get_num_threads()} threads, device {name}, PyTorch {torch.__version__}, "
        f"Python {platform.python_version()}"
    )


def installed_versions() -> dict[str, str | None]:
    """Versions of what a benchmark compares, and of what it runs on; None of what is not installed."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in ("hf-projclust", "torch", "transformers", "torchao", "bitsandbytes"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def busy_share() -> float:
    """How much of all processors other work takes just now, 0 to 1, looked at for half a second."""
    return psutil.cpu_percent(interval=0.5) / 100
