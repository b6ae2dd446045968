"""The folder that the protocol fills: what it was made with, and its cells, each a file that is whole or absent.

A run into a folder goes on with what is there, if it would have made the same; any other is refused. Tables of the
cells are written elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from transformers.utils import logging

from ...token_counts import describe_sources
from ..machine import describe_machine, installed_versions
from ..whole_files import whole_file
from .plan import Cell, Protocol

logger = logging.get_logger(__name__)

_OF_CELLS = (
    "epochs",
    "extra_epochs",
    "learning_rate",
    "batch_size",
    "max_length",
    "max_train",
    "bf16",
)


class ProtocolFolder:
    """The folder.

    Attributes:
        path: Where it is.
        models: Folder of what is kept while cells of it are to be made.
    """

    def __init__(self, path: str | Path) -> None:
        """Look at nothing yet."""
        self.path = Path(path)
        self.models = self.path / "models"

    def check(self) -> None:
        """Refuse a place that holds something else.

        Raises:
            FileExistsError: If it is a file, or a folder with something in it that no run of this has begun.
        """
        if self.path.exists() and not self.path.is_dir():
            raise FileExistsError(f"output {str(self.path)!r} is a file; expected a folder. Choose another --output.")
        if self.path.is_dir() and any(self.path.iterdir()) and not self._run.is_file():
            raise FileExistsError(
                f"output {str(self.path)!r} holds something, and no run.json; expected a folder that is new, empty, or "
                "of an earlier run. Choose another --output."
            )

    def begin(
        self,
        protocol: Protocol,
        base_sha256: str,
        examples_sha256: Mapping[str, str],
        token_counts_sha256: str | None = None,
    ) -> dict[str, Any]:
        """Note what cells are made with, or compare it to what those in the folder were made with.

        Args:
            protocol: The options.
            base_sha256: Digest of the base model.
            examples_sha256: Digest of the examples of each task.
            token_counts_sha256: Digest of the counted shares where files are counted, whose names do not tell what
                they hold; None where none are.

        Returns:
            What was noted: "base", "options", and under "made_with" versions and machine of each run that had others.

        Raises:
            ValueError: If the folder's cells were made with other options or examples, or of another base; nothing is
                written then.
        """
        base = Path(protocol.base).resolve().name if Path(protocol.base).is_dir() else str(protocol.base)
        options: dict[str, Any] = {name: getattr(protocol, name) for name in _OF_CELLS}
        options |= {"token_counts": describe_sources(list(protocol.token_counts)), "base_sha256": base_sha256}
        if token_counts_sha256 is not None:
            options["token_counts_sha256"] = token_counts_sha256
        made_with = {"machine": describe_machine(protocol.device), "versions": installed_versions()}
        noted: dict[str, Any] = {"base": base, "options": options, "made_with": [made_with]}
        if self._run.is_file():
            before = _read(self._run, "options", "made_with")
            _check_equal(before["options"], options, self.path)
            self._check_examples(examples_sha256)
            noted = {**before, "options": {**options, **before["options"]}}
            noted["options"]["extra_epochs"] = before["options"]["extra_epochs"] or protocol.extra_epochs
            if made_with not in before["made_with"]:
                logger.warning(
                    "Cells in %s were made with other versions or on another machine, which run.json names; those that "
                    "are made now may differ from them by more than the method does.",
                    self.path,
                )
                noted["made_with"] = [*before["made_with"], made_with]
        (self.path / "cells").mkdir(parents=True, exist_ok=True)
        _write(self._run, noted)
        return noted

    def read_cells(self, cells: Iterable[Cell]) -> dict[Cell, dict[str, Any]]:
        """Those of the cells that are there.

        Raises:
            ValueError: If the file of one is damaged, with its name.
        """
        found = {}
        for cell in cells:
            if (path := self._file(cell)).is_file():
                found[cell] = _read(path, "metrics", "dense_sha256", "seconds")
        return found

    def write_cell(self, cell: Cell, record: dict[str, Any]) -> None:
        """Write a cell, whole or not at all."""
        _write(self._file(cell), record)

    def _check_examples(self, digests: Mapping[str, str]) -> None:
        """Refuse cells of other examples, which no table may mix; those that note none are taken."""
        for task, digest in digests.items():
            paths = sorted((self.path / "cells").glob(f"{task}-*.json"))
            noted = {path.name: _read(path, "metrics").get("examples_sha256", digest) for path in paths}
            if differing := [name for name, other in noted.items() if other != digest]:
                raise ValueError(
                    f"task {task!r} has other examples than {len(differing)} of its cells in {str(self.path)!r} were "
                    f"made with ({differing[0]}: {noted[differing[0]][:12]} there and {digest[:12]} now); expected the "
                    "same texts and labels, so that cells can be compared. Give the earlier data_dir, choose another "
                    f"--output, or delete cells/{task}-*, and they are made again."
                )

    @property
    def _run(self) -> Path:
        return self.path / "run.json"

    def _file(self, cell: Cell) -> Path:
        return self.path / "cells" / f"{cell.name}.json"


def _check_equal(before: dict[str, Any], now: dict[str, Any], folder: Path) -> None:
    """Refuse other options; without fine-tuning, extra epochs made no difference, and not all runs count files."""
    names = [
        name
        for name in now
        if before.get(name) != now[name]
        and not (name == "extra_epochs" and 0 in (before.get(name), now[name]))
        and not (name == "token_counts_sha256" and name not in before)
    ]
    if names == ["token_counts_sha256"]:
        raise ValueError(
            f"cells in {str(folder)!r} were made with other texts of token_counts {' '.join(now['token_counts'])} "
            f"({before[names[0]][:12]} there and {now[names[0]][:12]} now); expected the same texts, so that cells can "
            "be compared. Put the earlier texts back, or choose another --output."
        )
    if names:
        differing = ", ".join(f"{name} {before.get(name)!r} there and {now[name]!r} now" for name in names)
        raise ValueError(
            f"cells in {str(folder)!r} were made otherwise: {differing}; expected equal options, so that cells can be "
            "compared. Give those, or choose another --output."
        )


def _read(path: Path, *keys: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for key in keys:
            found[key]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{str(path)!r} is damaged ({type(error).__name__}: {error}); expected what an earlier run wrote. Delete "
            "this file, and what is missing is made again."
        ) from error
    return found


def _write(path: Path, value: Any) -> None:
    with whole_file(path) as partial:
        partial.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
