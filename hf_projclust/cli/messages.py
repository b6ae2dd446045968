"""Errors of a command as one message on standard error and exit code 1; what may be a bug keeps its traceback."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from typing import Any

import typer
from rich.console import Console
from safetensors import SafetensorError


@contextlib.contextmanager
def errors_as_messages() -> Iterator[None]:
    """Run a command; what a user can mend, or the machine cannot do, becomes a message."""
    # Ended from outside, a run cleans up as after Ctrl-C.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    except (ValueError, TypeError, OSError, ImportError, SafetensorError) as error:
        _print_error(error)
        raise typer.Exit(1) from error
    except (RuntimeError, MemoryError) as error:
        if (message := _failure_of_the_machine(error)) is None:
            raise
        _print_error(message)
        raise typer.Exit(1) from error


def _print_error(message: object) -> None:
    Console(stderr=True).print(f"[red]Error:[/red] {escaped(message)}", soft_wrap=True, highlight=False)


def _failure_of_the_machine(error: Exception) -> str | None:
    """A message for want of memory and for numbers that torch cannot work with; None for all that may be a bug."""
    import torch

    reason = next(iter(str(error).splitlines()), type(error).__name__)
    if isinstance(error, torch.linalg.LinAlgError):
        return (
            f"a decomposition failed ({reason}); expected a table whose rows are not all but equal or extremely large. "
            "Try another --seed or --device, or a larger --rank."
        )
    # On the CPU torch raises a plain RuntimeError, which only its text tells from others.
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        return (
            f"the memory is not enough ({reason}); expected room for the model and the clustering. Use a --device that "
            "has more, or give hf-projclust compress a --memory-limit, such as 1GB."
        )
    return None


def escaped(value: Any) -> str:
    """A value as text in which rich finds no markup."""
    from rich.markup import escape

    return escape(str(value))
