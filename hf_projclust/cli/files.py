"""Files that a command is to write: refused before it begins, and their JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..evaluation.whole_files import whole_file


def check_file(output: Path, *, force: bool) -> None:
    """Refuse a file that is there, unless it is to be replaced, or that cannot be made.

    Args:
        output: The file.
        force: Whether to replace it.

    Raises:
        FileExistsError: If it is there.
        FileNotFoundError: If there is no such folder.
    """
    if output.is_dir() or (output.exists() and not force):
        raise FileExistsError(
            f"output {str(output)!r} is there; expected a file to make. Choose another, or add --force."
        )
    if not output.resolve().parent.is_dir():
        raise FileNotFoundError(f"output {str(output)!r} is in no folder; expected one that exists. Make it first.")


def write_json(output: Path, record: dict[str, Any]) -> None:
    """Write a record to a file, whole or not at all.

    Args:
        output: The file.
        record: What to write, in JSON types.

    Raises:
        ValueError: If a number in it is NaN or infinite, which JSON has no name for.
    """
    with whole_file(output) as partial:
        partial.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
