"""Where a command prints its tables: as wide as a terminal is, or, into a file or a pipe, as wide as they need."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table


def console_for(*tables: Table) -> Console:
    """A console on standard output that breaks no line of some tables unless it is a terminal.

    Args:
        tables: What it is to print.

    Returns:
        The console.
    """
    console = Console()
    if not console.is_terminal:
        unlimited = console.options.update(max_width=10_000)
        console.width = max(console.width, *(console.measure(table, options=unlimited).maximum for table in tables))
    return console
