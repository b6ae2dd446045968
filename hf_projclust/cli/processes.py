"""Commands that torchrun or accelerate launch started in several processes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator


@contextlib.contextmanager
def all_processes(device: str | None) -> Iterator[bool]:
    """Join the processes that torchrun or accelerate launch started; whether this one writes and shows."""
    if "LOCAL_RANK" not in os.environ:
        yield True
        return
    from accelerate import PartialState
    from transformers.utils import logging

    state = PartialState(cpu=device is None or device == "cpu")
    if not state.is_main_process:
        logging.disable_progress_bar()
    try:
        yield state.is_main_process
        state.wait_for_everyone()
    finally:
        state.destroy_process_group()
