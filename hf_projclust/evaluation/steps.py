"""Steps of an evaluation that are kept in a folder, so that one that was stopped goes on where it was.

What a step measures is not known here; what it gives is of JSON types.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from ..locks import locked
from ..solvers import Checkpoint

_Arguments = ParamSpec("_Arguments")
_Found = TypeVar("_Found")


class Steps:
    """Measures each step, or takes what an earlier run found.

    Args:
        checkpoint: Where steps are kept; None keeps nothing.
    """

    def __init__(self, checkpoint: Checkpoint | None) -> None:
        """Keep what is needed."""
        self.checkpoint = checkpoint

    def __call__(
        self,
        name: str,
        measure: Callable[_Arguments, _Found],
        *args: _Arguments.args,
        **kwargs: _Arguments.kwargs,
    ) -> _Found:
        """What a step gives: ``measure(*args, **kwargs)``, or what was kept of it under its name."""
        if self.checkpoint is None:
            return measure(*args, **kwargs)
        if name in self.checkpoint.states:
            kept: _Found = self.checkpoint.states[name]["found"]
            return kept
        found = measure(*args, **kwargs)
        self.checkpoint.save(name, {"found": found})
        return found

    def of_both(
        self,
        name: str,
        models: Iterable[Any],
        measure: Callable[Concatenate[Any, _Arguments], _Found],
        *args: _Arguments.args,
        **kwargs: _Arguments.kwargs,
    ) -> list[_Found]:
        """What a measure gives of the dense model and of the compressed one, each a step of its own."""
        return [
            self(f"{name} of the {which} model", measure, model, *args, **kwargs)
            for model, which in zip(models, ("dense", "compressed"), strict=True)
        ]


@contextlib.contextmanager
def steps_in(
    folder: str | Path | None, options: dict[str, Any], files: dict[str, str | Path | None]
) -> Iterator[Steps]:
    """Steps that are kept in a folder while a block runs, which is this run's alone.

    Args:
        folder: The folder, made if it is absent; None keeps nothing.
        options: What the figures follow from, of JSON types.
        files: What they are measured on: files, folders, or ids of the Hub.

    Raises:
        BlockingIOError: If another run has the folder.
        ValueError: If it holds other things, or steps of another evaluation, or is in a folder that is measured.
    """
    if folder is None:
        yield Steps(None)
        return
    for path in files.values():
        if path is not None and Path(path).resolve() in (Path(folder).resolve(), *Path(folder).resolve().parents):
            raise ValueError(
                f"checkpoint={str(folder)!r} is {str(path)!r} or in it, which is measured; expected a folder elsewhere."
            )
    with locked(folder):
        yield Steps(Checkpoint(folder, options | {name: _state_of(path) for name, path in files.items()}))


def _state_of(path: str | Path | None) -> Any:
    """Sizes and times of files, by which a change is seen; what is not on this machine as it is."""
    if path is None or not Path(path).exists():
        return None if path is None else str(path)
    whole = Path(path).resolve()
    files = [whole] if whole.is_file() else sorted(each for each in whole.rglob("*") if each.is_file())
    return {str(file): [(stat := file.stat()).st_size, stat.st_mtime_ns] for file in files}
