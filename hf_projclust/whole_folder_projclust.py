"""Saves that are whole or absent: a folder is written beside its destination, and put in place at the end.

A process that is killed at any moment leaves the old files or the new ones, and at most a hidden folder beside them.
Only files are handled here; what is saved is not known. It travels with a checkpoint: it imports Python's own library
only.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

_WEIGHTS = re.compile(r"(?P<name>.+?)(-\d{5}-of-\d{5})?\.safetensors(\.index(?P<variant>\..+)?\.json)?")
_AT_CURRENT_FOLDER = -100  # AT_FDCWD of Linux
_EXCHANGE = 2  # RENAME_EXCHANGE
_LONGEST = 200  # of a name, so that there is room for what is added to it
_FULL = f"(os error {errno.ENOSPC})"  # in what safetensors raises


class WholeFolder:
    """A hidden folder to write into, which then takes the place of another, with the files that the other has besides.

    Where the other cannot be replaced by one like it, files go into it one by one, each whole; a kill meanwhile leaves
    some of each. That is so where it has folders in it, for the current folder, mount points, files or folders of other
    owners, and systems without the step.

    Args:
        folder: Where the files are to be in the end.

    Raises:
        NotADirectoryError: If it is a file.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        """Make the hidden folder."""
        self.folder = Path(os.path.realpath(folder))  # what a link leads to: the link stays
        if self.folder.exists() and not self.folder.is_dir():
            raise NotADirectoryError(f"{str(folder)!r} is a file; expected a folder to save in. Choose another.")
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        self._is_inside = not _may_be_replaced(self.folder)
        self.partial = _hidden_in(self.folder) if self._is_inside else hidden_beside(self.folder)
        # Nobody is to read in it who may not in the other.
        self.partial.mkdir(mode=self.folder.stat().st_mode & 0o777 if self.folder.exists() else 0o777)
        self._is_in_place = self._holds_the_old = False

    @staticmethod
    @contextlib.contextmanager
    def saved(folder: str | os.PathLike[str]) -> Iterator[WholeFolder]:
        """Put in place what a block writes if it ends well, and leave nothing of it otherwise.

        Raises:
            OSError: If the disk is full.
        """
        save = WholeFolder(folder)
        try:
            yield save
            save.put_in_place()
        except Exception as error:
            if (isinstance(error, OSError) and error.errno == errno.ENOSPC) or _FULL in str(error):
                free = shutil.disk_usage(save.folder.parent).free
                raise OSError(
                    errno.ENOSPC,
                    f"the disk of {str(save.folder)!r} is full, with {free:,} bytes free; expected room for a whole "
                    "save beside what is there, which is as it was. Free some, or save elsewhere.",
                ) from error
            raise
        finally:
            save._remove()

    def put_in_place(self) -> None:
        """Give the destination what was written, once.

        What else it holds stays, but for weights of an earlier save that these are in place of: shards, or one file.
        """
        if self._is_in_place:
            return
        self._is_in_place = True
        written = {path.name for path in self.partial.iterdir()}
        if not written:  # as by the processes of a run that leave the files to another
            self.folder.mkdir(exist_ok=True)
            return
        self._follow_the_umask(written)
        if self._is_inside or not self._take_the_place(written):
            for name in sorted(written):
                _move(self.partial / name, self.folder / name)
            for name in _stale(self.folder, written):
                (self.folder / name).unlink(missing_ok=True)

    def _follow_the_umask(self, written: set[str]) -> None:
        """Give files the mode that a new one has: safetensors makes some that nobody else may read."""
        new = _hidden_in(self.partial)
        new.touch()
        mode = new.stat().st_mode & 0o777
        new.unlink()
        for path in (self.partial / name for name in written):
            if path.is_file() and path.stat().st_mode & 0o777 != mode:
                with contextlib.suppress(OSError):  # some file systems have no modes
                    path.chmod(mode)

    def _take_the_place(self, written: set[str]) -> bool:
        """Replace the folder in one step; False, with the folder as it was, where that cannot be."""
        try:
            if self.folder.exists():
                shutil.copymode(self.folder, self.partial)
            self.partial.rename(self.folder)
            return True
        except OSError:
            if not self.folder.is_dir():
                raise
        # It holds something.
        try:
            _link_all(self.folder, self.partial, without=written | _stale(self.folder, written))
            if not exchange(self.partial, self.folder):
                return False
        except (OSError, NotImplementedError):  # what has no second name here stays where it is
            return False
        # Another process of the run, which saves its own part, may have written into the old folder meanwhile.
        self._holds_the_old = True
        for path in self.partial.iterdir():
            if not (path.name in written | _stale(self.partial, written) or os.path.lexists(self.folder / path.name)):
                path.rename(self.folder / path.name)
        return True

    def _remove(self) -> None:
        """Remove the hidden folder; of an old one that stands in its place only what there was to replace: files."""
        if not self._holds_the_old:
            shutil.rmtree(self.partial, ignore_errors=True)
            return
        with contextlib.suppress(OSError):
            for path in self.partial.iterdir():
                path.unlink()
            self.partial.rmdir()


def hidden_beside(folder: Path) -> Path:
    """A path in the parent of a folder that nothing has, for what is to take its place."""
    return folder.with_name(f".{folder.name[:_LONGEST]}.{uuid.uuid4().hex[:8]}.partial")


def _hidden_in(folder: Path) -> Path:
    return folder / f".{uuid.uuid4().hex[:8]}.partial"


def exchange(one: Path, other: Path) -> bool:
    """Let two folders change places in one step.

    Args:
        one: A folder.
        other: Another, on the same disk.

    Returns:
        Whether they did; False where the system or the file system offers no such step.
    """
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if os.name == "posix" else None
    if rename is None:
        return False
    return bool(rename(_AT_CURRENT_FOLDER, os.fsencode(one), _AT_CURRENT_FOLDER, os.fsencode(other), _EXCHANGE) == 0)


def _may_be_replaced(folder: Path) -> bool:
    """Whether a new folder can stand for it: to its owner, to this process, and for all that it holds."""
    try:
        current = Path(os.path.realpath("."))
    except OSError:  # it was deleted
        return False
    if not os.access(folder.parent, os.W_OK) or os.path.ismount(folder) or folder in (current, *current.parents):
        return False
    if not folder.exists():
        return True
    # A folder within it may be a mount point, have another owner, or be written into by others.
    if any(path.is_dir() and not path.is_symlink() for path in folder.iterdir()):
        return False
    return os.name != "posix" or (folder.stat().st_uid, folder.stat().st_gid) == (os.geteuid(), os.getegid())


def _link_all(source: Path, target: Path, without: set[str]) -> None:
    """Give a folder the files of another under a second name."""
    for path in source.iterdir():
        if path.name not in without:
            os.link(path, target / path.name, follow_symlinks=False)


def _move(path: Path, target: Path) -> None:
    """Move a file in one step, over a mount point too."""
    try:
        os.replace(path, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        near = _hidden_in(target.parent)
        shutil.copy2(path, near)
        os.replace(near, target)


def _stale(folder: Path, written: set[str]) -> set[str]:
    """Files of weights that some others are in place of, as shards are of one file."""
    names = {_weights_name(name) for name in written} - {None}
    return {path.name for path in folder.iterdir() if _weights_name(path.name) in names} - written


def _weights_name(name: str) -> str | None:
    """What a file of weights, its shards and their index have in common; None for other files."""
    found = _WEIGHTS.fullmatch(name)
    return None if found is None else found["name"] + (found["variant"] or "")
