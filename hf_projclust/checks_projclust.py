"""What is checked of the tables of a model before it is saved, and after it is loaded.

This file travels with a checkpoint: it imports torch, transformers and its siblings only.
"""

from __future__ import annotations

from typing import Any

from .packed_projclust import PackedTable
from .table_projclust import FACTOR_NAMES, FactoredTable
from .vocabulary_projclust import owner_of


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


def damage_of(tables: dict[str, FactoredTable], loading_info: Any, *, may_leave_over: bool) -> str | None:
    """What is wrong with the factors that a checkpoint gave, or None."""
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
    for name, table in tables.items():
        if damage := table.damage():
            return f"{name}.{damage}. The checkpoint is damaged: fetch or save it again."
    return None
