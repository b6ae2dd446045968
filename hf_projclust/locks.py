"""One run at a time for a folder: a second one is told of the first, and a run that was killed is in nobody's way.

The lock is one of the system, which ends with the process that holds it; the file beside the folder is only what it is
held by.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import os
import platform
import tempfile
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from .solvers.rows import process_index

_LONGEST = 200  # of a name, so that there is room for what is added to it


@contextlib.contextmanager
def locked(*folders: str | Path | None) -> Iterator[None]:
    """Keep folders to this run while a block runs; of the processes of one run the first one does it for all.

    Args:
        folders: What the run writes, whether it is there yet or not; None is passed over. Beside each is a hidden file
            meanwhile, ``.NAME.lock``, which a run that is killed leaves, and the next one takes over.

    Raises:
        BlockingIOError: If another run has one of them.
    """
    with contextlib.ExitStack() as stack:
        for folder in folders:
            if folder is not None and process_index() == 0:
                stack.enter_context(_locked(Path(folder).resolve()))
        yield


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    file = _file_of(folder)
    lock = FileLock(file, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise BlockingIOError(
            f"{str(folder)!r} is being written by {_holder(file)}; expected one run at a time. Wait until it has "
            "ended, stop it, or choose another folder."
        ) from error
    try:
        now = datetime.datetime.now(datetime.timezone.utc)
        file.write_text(f"process {os.getpid()} on {platform.node()} since {now:%Y-%m-%d %H:%M} UTC", encoding="utf-8")
        yield
    finally:
        with contextlib.suppress(OSError):  # some systems delete no file that is open
            file.unlink()
        lock.release()


def _file_of(folder: Path) -> Path:
    """Beside the folder; where nothing can be made there, among temporary files."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    if os.access(folder.parent, os.W_OK):
        return folder.with_name(f".{folder.name[:_LONGEST]}.lock")
    return Path(tempfile.gettempdir(), f"hf_projclust-{hashlib.sha256(os.fsencode(folder)).hexdigest()}.lock")


def _holder(file: Path) -> str:
    """Who holds a lock, as far as its file can be read."""
    with contextlib.suppress(OSError):
        return file.read_text(encoding="utf-8") or "another process"
    return "another process"
