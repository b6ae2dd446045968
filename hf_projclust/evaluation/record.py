"""The evaluation that a compressed folder carries: noted in its config.json, and held to be of its weights alone.

A card is written from it. Weights that were trained since have another digest, and the figures are then left out.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import get_local_safetensors_metadata
from safetensors import safe_open
from transformers.utils import logging

from .figures import KINDS, Figure
from .whole_files import whole_file

logger = logging.get_logger(__name__)

_NAME, _DIGEST = "evaluation", "weights_sha256"
_FIELDS = {field.name for field in fields(Figure)}  # a later version may note others, which are passed over


def note_in_config(folder: str | Path, name: str, value: Any) -> None:
    """Put a value beside what the config.json of a compressed folder says of the compression.

    Args:
        folder: Folder of a compressed model.
        name: Name of the value.
        value: The value, in JSON types.

    Raises:
        ValueError: If a number in it is NaN or infinite, which JSON has no name for.
    """
    path = Path(folder, "config.json")
    content = json.loads(path.read_text(encoding="utf-8"))
    content["projclust"][name] = value
    with whole_file(path) as partial:
        partial.write_text(json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")


def note_evaluation(folder: str | Path, figures: tuple[Figure, ...], date: str) -> None:
    """Note figures in the config.json of a compressed folder, in place of those that are there.

    Args:
        folder: Folder of a compressed model.
        figures: What was measured of its weights.
        date: When, such as "2026-01-31".
    """
    figures_written = [asdict(figure) for figure in figures]
    note_in_config(folder, _NAME, {"figures": figures_written, "date": date, _DIGEST: weights_digest(folder)})


def noted_evaluation(folder: str | Path, config: Any) -> tuple[tuple[Figure, ...], str] | None:
    """The figures that were noted for the weights of a folder.

    Args:
        folder: Folder of a compressed model.
        config: Its configuration.

    Returns:
        The figures and their date; None where there are none, or, with a warning, where they are of other weights.
    """
    record = config.projclust.get(_NAME)
    if record is None:
        return None
    if record.get(_DIGEST) != weights_digest(folder):
        logger.warning(
            "What `hf-projclust evaluate` noted in %s is of other weights, and left out of the card. Evaluate again.",
            Path(folder) / "config.json",
        )
        return None
    known = [Figure(**figure) for figure in record["figures"] if figure.keys() == _FIELDS and figure["name"] in KINDS]
    return tuple(known), record["date"]


def weights_digest(folder: str | Path) -> str:
    """A digest of the names, dtypes, shapes and numbers of the weights in a folder, in whatever files they are.

    Args:
        folder: Folder with safetensors files.

    Returns:
        SHA-256, in hexadecimal digits.
    """
    places: dict[str, list[str]] = defaultdict(list)
    for file, metadata in get_local_safetensors_metadata(folder).files_metadata.items():
        for name in metadata.tensors:
            places[name].append(file)
    digest = hashlib.sha256()
    for name, files in sorted(places.items()):
        for file in sorted(files):
            with safe_open(Path(folder, file), framework="pt") as opened:
                tensor = opened.get_tensor(name)
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
