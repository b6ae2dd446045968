"""What is checked of a checkpoint's files before they are opened, and of a model's tables, loaded or to be saved.

Weights come from safetensors files alone: a pickle can run code when it is opened. This file travels with a checkpoint:
it imports torch, transformers and its siblings only.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from math import prod
from os import PathLike
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from .layout_projclust import ProjClustCheckpointError
from .packed_projclust import PackedTable
from .table_projclust import FACTOR_NAMES, FactoredTable
from .vocabulary_projclust import factored_tables, owner_of

_SUFFIX = ".safetensors"
_MOST_MADE = 2**34  # bytes of tables that no file has, such as positions: 64 times those of a million positions of 64
_FETCH = "Fetch or save the checkpoint again."


def check_weight_names(folder: str | PathLike[str], variant: str | None = None) -> None:
    """Refuse a folder with pickled weights alone, or with an index of other files than its own; no weights are opened.

    Args:
        folder: Folder of a checkpoint; what is no folder is left to those who look on the Hub.
        variant: Which of several weights are asked for, such as "fp16".

    Raises:
        ProjClustCheckpointError: If the weights, or those of an adapter beside them, are pickled, or an index is
            damaged.
    """
    names = {path.name for path in Path(folder).iterdir()} if Path(folder).is_dir() else set()
    is_safe = any(name.endswith(_SUFFIX) or f"{_SUFFIX}.index" in name for name in names)
    pickled = [] if is_safe else sorted(name for name in names if name.startswith("pytorch_model"))
    if "adapter_config.json" in names and "adapter_model.safetensors" not in names:
        pickled += sorted(names & {"adapter_model.bin"})
    if pickled:
        raise ProjClustCheckpointError(
            f"{str(folder)!r} has {', '.join(pickled)}; expected safetensors files. Pickled weights are not opened, "
            "since they can run code: fetch the safetensors files, or, if you trust who made these, load them with "
            "Transformers and save them by save_pretrained()."
        )
    of_variant = f".{variant}" if variant else ""
    single, index = f"model{of_variant}{_SUFFIX}", f"model{_SUFFIX}.index{of_variant}.json"
    if index in names and single not in names:  # which is taken first
        _check_index(Path(folder, index), names)


def _check_index(path: Path, names: set[str]) -> None:
    """Refuse an index that names anything but safetensors files beside it."""
    try:
        index = json.loads(path.read_bytes())
        is_whole = isinstance(index["metadata"], dict) and isinstance(index["weight_map"], dict)
        files = list(index["weight_map"].values()) if is_whole else []
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise ProjClustCheckpointError(
            f"{str(path)!r} cannot be read ({type(error).__name__}: {error}); expected the index of a sharded "
            f"checkpoint. {_FETCH}"
        ) from error
    if not files:
        raise ProjClustCheckpointError(f"{str(path)!r} has no metadata or no weight_map; expected both. {_FETCH}")
    for file in files:
        if not (isinstance(file, str) and file in names and file.endswith(_SUFFIX)):
            raise ProjClustCheckpointError(
                f"{str(path)!r} names the file {file!r}; expected safetensors files in its own folder. {_FETCH}"
            )


def check_files(model: Any, files: Iterable[str]) -> None:
    """Refuse files that do not hold what a model asks for, by their headers, before memory is reserved for it.

    Args:
        model: A model; what of it is not on the meta device has its memory already, and is passed over.
        files: Paths of the weights.

    Raises:
        ProjClustCheckpointError: If one is no safetensors file, or a tensor cannot be in them for its size, or is of
            whole numbers where the table has floating ones, or the other way round; or if the model has huge tables
            that are in no file.
    """
    headers: dict[str, tuple[tuple[int, ...], str]] = {}  # shape and dtype of each tensor
    for file in files:
        if not file.endswith(_SUFFIX):
            raise ProjClustCheckpointError(
                f"{file!r} is no {_SUFFIX} file; expected one, since pickled files can run code when they are opened. "
                f"{_FETCH}"
            )
        try:
            with safe_open(file, "pt") as opened:
                parts = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 (it is no dictionary)
                headers |= {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in parts.items()}
        except (OSError, SafetensorError) as error:
            raise ProjClustCheckpointError(
                f"{file!r} cannot be read ({type(error).__name__}: {error}); expected a whole safetensors file. "
                f"{_FETCH}"
            ) from error
    _check_made_tables(model)
    num_stored = sum(prod(shape) for shape, _ in headers.values())
    tables = factored_tables(model)
    of_tables = {f"{name}.{part}": table for name, table in tables.items() for part in table.stored_names}
    prefix = f"{model.base_model_prefix}."
    for key, tensor in model.state_dict().items():
        if not tensor.is_meta:
            continue
        stored = next((each for each in (key, prefix + key, key.removeprefix(prefix)) if each in headers), None)
        # A head that is in no file is made anew, as natively; what has another shape there is refused in the end.
        is_wanted = key in of_tables or (stored is not None and headers[stored][0] != tuple(tensor.shape))
        if is_wanted and tensor.numel() > num_stored:
            needed = f"{tuple(tensor.shape)} from its config.json, which is more than the {num_stored:,} numbers there"
            if stored is None:
                raise ProjClustCheckpointError(
                    f"the checkpoint has no {key}; expected every factor of the vocabulary table, and of this one the "
                    f"shape {needed}. Without it the table would be random: fetch or save the checkpoint again."
                )
            raise ProjClustCheckpointError(
                f"{stored} has shape {headers[stored][0]} in the checkpoint; expected {needed}. One of the two "
                "files is damaged: fetch or save the checkpoint again."
            )
        is_float_table = key in of_tables and not isinstance(of_tables[key], PackedTable)  # few bits have checksums
        if stored is not None and is_float_table:
            found = headers[stored][1]
            if tensor.is_floating_point() != ("F" in found):  # F32, BF16, F8_E4M3, but I32, U8, BOOL
                kind = "floating" if tensor.is_floating_point() else "whole"
                raise ProjClustCheckpointError(f"{stored} has dtype {found}; expected {kind} numbers. {_FETCH}")


def _check_made_tables(model: Any) -> None:
    """Refuse tables that are in no file, which Transformers makes at the word of a config.json."""
    in_files = model.state_dict().keys()
    made = {name: buffer.nbytes for name, buffer in model.named_buffers() if buffer.is_meta and name not in in_files}
    if sum(made.values()) > _MOST_MADE:
        name = max(made, key=made.__getitem__)
        raise ProjClustCheckpointError(
            f"the config.json asks for {sum(made.values()):,} bytes of tables that are in no file, {made[name]:,} of "
            f"them for {name}; expected at most {_MOST_MADE:,}. It is damaged: fetch the checkpoint again."
        )


def check_tables(model: Any) -> None:
    """Refuse to save where a reload, which makes the tables and ties them again, would give another model."""
    tables = {"embedding": model.get_input_embeddings(), "head": model.get_output_embeddings()}
    factored = [tables[name] for name in model.config.factor_layouts if tables[name] is not None]
    tied: dict[str, Any] = {key: owner_of(model, key) for pair in model._tied_rows.items() for key in pair}
    for module in (*factored, *tied.values()):
        if not isinstance(module, FactoredTable):
            raise ValueError(
                f"a {type(module).__name__} stands where {type(model).__name__} had a factored table; expected the "
                "factored module, which the configuration describes. Put it back, or replace modules in the dense "
                "model, hf_projclust.decompress(model), and compress the result."
            )
    for module in factored:
        if isinstance(module, PackedTable) and (changed := module.changed_codes()):
            raise ValueError(
                f"the table of {type(model).__name__} in few bits was changed in memory, as by averaging weights: "
                f"{changed}. Expected the bytes that were loaded. Load the model again; to change the table, call "
                "model.dequantize_factors() first."
            )
    for target, source in model._tied_rows.items():
        own, stored = (tied[key].coefficients for key in (target, source))
        if own is not stored and not (own.is_meta or stored.is_meta):
            name = target.removesuffix(".rows")
            raise ValueError(
                f"{name} is tied to the vocabulary table, but has factors of its own now, as after merging an adapter "
                "that lists one of the two in modules_to_save; expected shared factors, since a file holds them once. "
                "Leave the table and its head out of modules_to_save, or keep the adapter unmerged: save the PeftModel."
            )


def note_tables(model: Any) -> None:
    """Put into the configuration what tells the tensors of tables in few bits, of which a cast changes the scales."""
    layouts = dict(model.config.factor_layouts)
    tables = {"embedding": model.get_input_embeddings(), "head": model.get_output_embeddings()}
    for name in layouts:
        table = tables[name]
        if isinstance(table, PackedTable) and not table.scales.is_meta:
            table.note_tensors()
            layouts[name] = table.layout
    model.config.set_factor_layouts(layouts)


def damage_of(model: Any, loading_info: Any, *, may_leave_over: bool) -> str | None:
    """What is wrong with the weights that a checkpoint gave to a model, or None.

    Weights beyond the table may be missing where a class is loaded that the checkpoint was not saved by: a fresh head.
    """
    tables = factored_tables(model)
    keys = {f"{name}.{part}" for name, table in tables.items() for part in table.stored_names}
    if missing := sorted(keys & set(loading_info.missing_keys)):
        return (
            f"the checkpoint has no {', '.join(missing)}; expected every factor of the vocabulary table. Without it "
            "the table would be random: fetch or save the checkpoint again."
        )
    left_over = sorted(key for key in loading_info.unexpected_keys if key.rpartition(".")[2] in FACTOR_NAMES)
    if left_over and not may_leave_over:
        return (
            f"the checkpoint has {', '.join(left_over)}, for which this model has no factored table; expected the "
            "modules that share the vocabulary table when it was saved. Load it with the tie_word_embeddings that it "
            "was saved with."
        )
    for key, found, expected in sorted(loading_info.mismatched_keys):
        if key in keys:
            return (
                f"{key} has shape {tuple(found)} in the checkpoint; expected {tuple(expected)} from its "
                "config.json. One of the two files is damaged: fetch or save the checkpoint again."
            )
    # A pooler may be left out when a class is made, which no configuration tells.
    missing = sorted(key for key in loading_info.missing_keys if "pooler" not in key.split("."))
    if type(model).__name__ in (model.config.architectures or ()) and missing:
        return (
            f"the checkpoint has no {', '.join(missing)}; expected every weight of the {type(model).__name__} that it "
            "was saved by. Without it the model would be random in part: fetch or save the checkpoint again."
        )
    for name, table in tables.items():
        if damage := table.damage():
            return f"{name}.{damage}. The checkpoint is damaged: fetch or save it again."
    return None
