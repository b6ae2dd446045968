"""Saved runs, so that a long clustering that was interrupted goes on where it was.

A checkpoint is a folder with one file a run, replaced whole after each round. It belongs to one table and one
set of options; where several processes share the rows, all see the folder and the first one writes it. A file is
one of safetensors: its tensors, and in its header, as JSON, the rest of the state; nothing is unpickled. Other long
runs keep theirs in the same way.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .rows import process_index

_OWNER = "projclust-run.json"
_ENDING = ".safetensors"
_PARTIAL = ".partial"
_TENSOR = "tensor"  # in the state as JSON, an object of this key alone stands for the tensor of that name


class Checkpoint:
    """Runs in a folder.

    Args:
        folder: The folder, made if it is absent.
        owner: What identifies the inputs and the options, of JSON types.

    Attributes:
        states: The saved state of each run, by name.

    Raises:
        ValueError: If the folder holds other files, or runs of other inputs or options, or is damaged.
    """

    def __init__(self, folder: str | Path, owner: dict[str, Any]) -> None:
        """Read what the folder has, or begin it."""
        self.folder = Path(folder)
        if not str(folder).isprintable():  # names that are no Unicode, which safetensors writes and does not read
            raise ValueError(f"checkpoint={str(folder)!r} has odd characters; expected others. Give another folder.")
        self.states: dict[str, dict[str, Any]] = {}
        if self.folder.exists() and not self._is_ours():
            raise ValueError(
                f"checkpoint={str(folder)!r} holds other things; expected a folder that is new or empty, or that an "
                "interrupted run left. Give another folder."
            )
        owner = json.loads(json.dumps(owner))
        if (self.folder / _OWNER).exists():
            self._read(owner)
        elif process_index() == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._replace(_OWNER, lambda path: path.write_text(json.dumps(owner, indent=2), encoding="utf-8"))

    def _is_ours(self) -> bool:
        names = {path.name for path in self.folder.iterdir()} if self.folder.is_dir() else {"file"}
        return _OWNER in names or all(name.endswith(_PARTIAL) for name in names)

    def _read(self, owner: dict[str, Any]) -> None:
        try:
            found = json.loads((self.folder / _OWNER).read_text(encoding="utf-8"))
            damage = "" if isinstance(found, dict) else "its record is no object"
            if not damage and found == owner:
                self.states = {path.stem: _read_state(path) for path in self.folder.glob(f"*{_ENDING}")}
        except (OSError, ValueError, LookupError, TypeError, RecursionError, SafetensorError) as error:
            damage = repr(error)
        if damage:
            raise ValueError(
                f"the checkpoint {str(self.folder)!r} is damaged ({damage}); expected one that an interrupted run "
                "left. Delete the folder to begin again."
            )
        if others := sorted(key for key in {*found, *owner} if found.get(key) != owner.get(key)):
            raise ValueError(
                f"the checkpoint {str(self.folder)!r} belongs to another run: {', '.join(others)} differ; expected the "
                "inputs and the options that it was begun with. Give these, or another folder."
            )

    def save(self, name: str, state: dict[str, Any]) -> None:
        """Save the state of a run, in place of an earlier one.

        Args:
            name: Name of the run.
            state: Tensors on the CPU, lists and numbers.
        """
        if process_index() == 0:
            self._replace(f"{name}{_ENDING}", lambda path: _write_state(state, path))

    def _replace(self, name: str, write: Any) -> None:
        partial = self.folder / f".{name}{_PARTIAL}"
        write(partial)
        if name != _OWNER:  # safetensors makes files that nobody else may read
            shutil.copymode(self.folder / _OWNER, partial)
        os.replace(partial, self.folder / name)


def _write_state(state: dict[str, Any], path: Path) -> None:
    tensors: dict[str, Tensor] = {}

    def set_aside(tensor: Tensor) -> dict[str, str]:
        name = str(len(tensors))
        tensors[name] = tensor.clone()  # a file has no two tensors of one memory
        return {_TENSOR: name}

    text = json.dumps(state, default=set_aside)
    save_file(tensors, path, metadata={"state": text})


def _read_state(path: Path) -> dict[str, Any]:
    with safe_open(path, "pt") as file:
        state = json.loads(
            file.metadata()["state"],
            object_hook=lambda found: file.get_tensor(found[_TENSOR]) if found.keys() == {_TENSOR} else found,
        )
    if not isinstance(state, dict):
        raise ValueError(f"{path.name} has the state {state!r:.80}; expected an object")
    return state
