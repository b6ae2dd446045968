"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

Output = Annotated[Path, typer.Option(help="Folder to write; it must be new or empty.", show_default=False)]
Force = Annotated[bool, typer.Option("--force", help="Replace an output folder that holds something.")]
Seed = Annotated[int, typer.Option(help="Seed of the random starts.")]
Device = Annotated[
    Optional[str],  # noqa: UP045 (typer reads this on Python 3.10 too)
    typer.Option(help="Where to compute, such as cuda; by default the CPU."),
]
