"""How the tests of damaged checkpoints damage a folder: its config.json, its tensors, its files.

What is expected of such a folder is not known here.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

TABLE = "bert.embeddings.word_embeddings"
Damage = Callable[[Path], object]


def edit_json(path: Path, change: Callable[[Any], object]) -> None:
    fields = json.loads(path.read_text())
    change(fields)
    path.write_text(json.dumps(fields))


def config(**fields: Any) -> Damage:
    """Other top-level fields in config.json; what is None is taken out."""

    def change(found: Any) -> None:
        found.update(fields)
        for name in [name for name, value in fields.items() if value is None]:
            del found[name]

    return lambda folder: edit_json(folder / "config.json", change)


def section(change: Callable[[Any], object]) -> Damage:
    """A change of the section ``projclust`` of config.json."""
    return lambda folder: edit_json(folder / "config.json", lambda fields: change(fields["projclust"]))


def table(**fields: Any) -> Damage:
    """Other fields of the embedding's layout."""
    return section(lambda found: found["embedding"].update(fields))


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Damage:
    """A change of the tensors of model.safetensors."""

    def damage(folder: Path) -> None:
        found = load_file(folder / "model.safetensors")
        change(found)
        save_file(found, folder / "model.safetensors", metadata={"format": "pt"})

    return damage


def factor(name: str, change: Callable[[torch.Tensor], torch.Tensor | None]) -> Damage:
    """Another tensor in place of one of the embedding's; None takes it out."""

    def damage(found: dict[str, torch.Tensor]) -> None:
        changed = change(found.pop(f"{TABLE}.{name}"))
        if changed is not None:
            found[f"{TABLE}.{name}"] = changed

    return tensors(damage)


def content(name: str, change: Callable[[bytes], bytes]) -> Damage:
    """Other bytes in a file."""
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


def index(change: Callable[[Any], object]) -> Damage:
    """A change of the index of a sharded folder."""
    return lambda folder: edit_json(folder / "model.safetensors.index.json", change)


def shard(name: Any) -> Damage:
    """The first tensor of the index in another file."""
    return index(lambda found: found["weight_map"].update({next(iter(found["weight_map"])): name}))
