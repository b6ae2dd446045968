"""Files that are written whole or not at all: beside their destination first, and put in place by a rename."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A file to write that takes the place of another when the block ends, and is removed if it fails.

    Args:
        path: The file to make or to replace.

    Yields:
        A hidden file in the same folder, with the same ending.
    """
    path = Path(path)
    partial = path.with_name(f".{path.stem}-{uuid.uuid4().hex}{path.suffix}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
