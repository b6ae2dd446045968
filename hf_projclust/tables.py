"""A vocabulary table that stays in its file: rows are read by slices of a safetensors checkpoint.

The file is opened for each slice, so that what was read does not stay in memory. Nothing is written.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import get_local_safetensors_metadata
from huggingface_hub.errors import NotASafetensorsRepoError, SafetensorsParsingError
from safetensors import safe_open
from torch import Tensor

_COMPARED_ROWS = 4096


@dataclass(frozen=True)
class TableFile:
    """A tensor of shape (n, dim) in a safetensors file, read by slices.

    Attributes:
        path: The file.
        key: Name of the tensor in it.
        shape: Its shape.
        dtype: Its dtype.
    """

    path: Path
    key: str
    shape: tuple[int, int]
    dtype: torch.dtype

    def __getitem__(self, span: slice) -> Tensor:
        """Rows of a span, shape (span, dim), on the CPU."""
        with safe_open(self.path, framework="pt") as file:
            return file.get_slice(self.key)[span]


def find_table(folder: Path, names: Iterable[str], num_rows: int) -> TableFile:
    """Find the vocabulary table of a checkpoint.

    Args:
        folder: Folder of the checkpoint, with model.safetensors, whole or in shards.
        names: Names of the table in the model's state dict; a file may hold one of them without the first parts,
            or with further ones before it.
        num_rows: Number of tokens, n.

    Returns:
        The table.

    Raises:
        ValueError: If the folder has no safetensors files, or none holds such a table, or two hold different ones.
    """
    try:
        files = get_local_safetensors_metadata(folder).files_metadata
    except (NotASafetensorsRepoError, SafetensorsParsingError) as error:
        raise ValueError(
            f"{str(folder)!r} has no readable safetensors files ({error}); expected model.safetensors, whole or in "
            "shards, to read the table in blocks. Save the model with save_pretrained(), or leave memory_limit out."
        ) from error
    found = []
    for file_name, metadata in files.items():
        for key, info in metadata.tensors.items():
            is_named = any(key == name or name.endswith(f".{key}") or key.endswith(f".{name}") for name in names)
            if is_named and len(info.shape) == 2 and info.shape[0] == num_rows:
                path = folder / file_name
                with safe_open(path, framework="pt") as file:
                    dtype = file.get_slice(key)[:1].dtype
                found.append(TableFile(path, key, (info.shape[0], info.shape[1]), dtype))
    for other in found[1:]:
        if not _equal(found[0], other):
            raise ValueError(
                f"{str(folder)!r} has {found[0].key} and {other.key}, which its configuration ties, with other "
                "numbers; expected one table. Leave memory_limit out: the two are kept apart then."
            )
    if found:
        return found[0]
    raise ValueError(
        f"{str(folder)!r} has no table of {num_rows:,} tokens under the name {' or '.join(names)}; expected it among "
        "its safetensors files. Leave memory_limit out to load the model whole."
    )


def _equal(one: TableFile, other: TableFile) -> bool:
    starts = range(0, one.shape[0], _COMPARED_ROWS)
    return all(
        torch.equal(one[first : first + _COMPARED_ROWS], other[first : first + _COMPARED_ROWS]) for first in starts
    )
