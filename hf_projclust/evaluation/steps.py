"""Steps of an evaluation that are kept in a folder, so that one that was stopped goes on where it was.

What a step measures is not known here; what it gives is of JSON types.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from ..locks import locked
from ..solvers import Checkpoint
from .record import weights_digest

_Arguments = ParamSpec("_Arguments")
_Found = TypeVar("_Found")
_FOUND = "found"


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
            state = self.checkpoint.states[name]
            if not isinstance(state.get(_FOUND), float | dict):
                raise ValueError(
                    f"the checkpoint's {name!r} is damaged: {state!r:.80}; expected a figure. Delete the folder to "
                    "begin again."
                )
            kept: _Found = state[_FOUND]
            return kept
        found = measure(*args, **kwargs)
        self.checkpoint.save(name, {_FOUND: found})
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
    folder: str | Path | None,
    options: dict[str, Any],
    *,
    models: dict[str, str | Path],
    data: dict[str, str | Path | None],
) -> Iterator[Steps]:
    """Steps that are kept in a folder while a block runs, which is this run's alone.

    Args:
        folder: The folder, made if it is absent; None keeps nothing.
        options: What the figures follow from, of JSON types.
        models: Folders of models, or their ids on the Hub.
        data: Files or folders that they are measured on.

    Raises:
        BlockingIOError: If another run has the folder.
        ValueError: If it holds other things, or steps of another evaluation, or is in a folder that is measured.
    """
    if folder is None:
        yield Steps(None)
        return
    for path in (*models.values(), *data.values()):
        if path is not None and Path(path).resolve() in (Path(folder).resolve(), *Path(folder).resolve().parents):
            raise ValueError(
                f"checkpoint={str(folder)!r} is {str(path)!r} or in it, which is measured; expected a folder elsewhere."
            )
    with locked(folder):
        digests = {name: weights_digest(path) if Path(path).is_dir() else str(path) for name, path in models.items()}
        digests |= {name: _contents_digest(Path(path)) for name, path in data.items() if path is not None}
        yield Steps(Checkpoint(folder, options | digests))


def _contents_digest(path: Path) -> str:
    """SHA-256 of a file, or of the files in a folder with their names, but for hidden ones."""
    digest = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(path.rglob("[!.]*")):
        if file.is_file():
            digest.update(f"{file.relative_to(path)} {file.stat().st_size} ".encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()
