"""The vocabulary of a model: which modules hold its table and its head, and how they are factored and tied.

Tied modules share their factors, which are parameters; each has a copy of the buffers, of which a file holds one. This
file travels with a checkpoint: it imports torch, transformers and its siblings only.
"""

from __future__ import annotations

import re
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from .embedding_projclust import factor_in_place
from .layout_projclust import ProjClustCheckpointError
from .packed_projclust import PackedTable
from .table_projclust import FACTOR_NAMES, FactoredTable


def factored_tables(model: nn.Module) -> dict[str, FactoredTable]:
    """Every factored module of a model, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, FactoredTable)}


def vocabulary_modules(model: Any) -> dict[str, list[Any]]:
    """The modules that hold a vocabulary table, those with one weight together.

    Args:
        model: A ``PreTrainedModel``.

    Returns:
        Under "embedding" the module of the input embedding, then every module whose weight is tied to it; under
        "head" the same of the output embedding, or nothing where there is none or it is tied to the input's.

    Raises:
        ValueError: If the model has no token embedding.
    """
    try:
        embedding = model.get_input_embeddings()
    except NotImplementedError:
        embedding = None
    if not isinstance(embedding, nn.Embedding):
        raise ValueError(
            f"{type(model).__name__} has {type(embedding).__name__} as its input embedding; expected an "
            "nn.Embedding of tokens. Only models that read token ids can be compressed."
        )
    ties = model.get_expanded_tied_weights_keys(all_submodels=True)
    of_embedding = _tied_modules(model, embedding, ties)
    head = model.get_output_embeddings()
    is_own = head is not None and head not in of_embedding
    return {"embedding": of_embedding, "head": _tied_modules(model, head, ties) if is_own else []}


def factor_vocabulary(model: Any) -> None:
    """Factor the modules that a model's configuration describes, in place, and rewrite the tie tables to factors.

    Args:
        model: A compressed model whose native modules were just built.

    Raises:
        ProjClustCheckpointError: If the configuration does not fit the model.
    """
    layouts = model.config.factor_layouts
    groups = vocabulary_modules(model)
    if model.config.has_untied_head and model.get_output_embeddings() in groups["embedding"]:
        _untie_head(model)
        groups = vocabulary_modules(model)
    if "head" in layouts and model.get_output_embeddings() is not None and not groups["head"]:
        raise ProjClustCheckpointError(
            f"the configuration of {type(model).__name__} ties its head to the vocabulary table, and describes a "
            "factored head with a table of its own; expected one or the other. The config.json is damaged: fetch the "
            "checkpoint again."
        )
    factored = {name: groups[name] for name in layouts if groups[name]}
    for name, modules in factored.items():
        shape, layout = tuple(modules[0].weight.shape), layouts[name]  # of tied ones it may differ until they are tied
        if shape != (layout.num_embeddings, layout.dim):
            raise ProjClustCheckpointError(
                f"{type(model).__name__} has a vocabulary table of {shape[0]:,} x {shape[1]}; its configuration "
                f"describes a factored one of {layout.num_embeddings:,} x {layout.dim}. The config.json is "
                "damaged, or vocab_size or the width was changed: fetch the checkpoint again."
            )
    submodels = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    ties = {submodel: submodel.get_expanded_tied_weights_keys(all_submodels=False) for submodel in submodels}
    for name, modules in factored.items():
        for module in modules:
            if not isinstance(module, FactoredTable):
                factor_in_place(module, layouts[name])
    for submodel in submodels:
        if ties[submodel]:
            submodel._tied_weights_keys = _ties_of_factors(submodel, ties[submodel])
    for submodel in submodels:
        if submodel is not model:
            submodel.all_tied_weights_keys = submodel.get_expanded_tied_weights_keys(all_submodels=True)
    # The row order is stored once, with the first module of a group; tie_weights copies it to the others.
    names = {id(module): name for name, module in model.named_modules()}
    model._tied_rows = {
        f"{names[id(module)]}.rows": f"{names[id(modules[0])]}.rows"
        for modules in factored.values()
        for module in modules[1:]
    }
    _ignore_copies_on_save(model)
    marks = [rf"(^|\.){re.escape(name)}\.weight$" for name in factored_tables(model)]
    model._keys_to_ignore_on_load_unexpected = [*(model._keys_to_ignore_on_load_unexpected or []), *marks]


def owner_of(model: Any, key: str) -> nn.Module | None:
    """The module that holds a parameter; None where a class names one that this instance does not have."""
    try:
        return model.get_submodule(key.rpartition(".")[0])
    except AttributeError:
        return None


def _tied_modules(model: Any, first: nn.Module, ties: dict[str, str]) -> list[Any]:
    """A module, and every other one whose weight is tied to its own, at first or second hand."""
    modules: list[Any] = [first]
    grew = True
    while grew:
        grew = False
        for pair in ties.items():
            ends = [owner_of(model, key) for key in pair if key.endswith((".weight", f".{FACTOR_NAMES[0]}"))]
            if len(ends) == 2 and any(end in modules for end in ends):
                added = [end for end in ends if end is not None and end not in modules]
                modules += added
                grew = grew or bool(added)
    return modules


def _untie_head(model: Any) -> None:
    """Take the weight of the head out of the tie tables, which the native configuration fills nevertheless."""
    head = model.get_output_embeddings()
    for submodel in [module for module in model.modules() if isinstance(module, PreTrainedModel)]:
        ties = submodel.get_expanded_tied_weights_keys(all_submodels=False)
        of_head = {pair for pair in ties.items() if any(_is_weight_of(submodel, key, head) for key in pair)}
        if of_head:
            submodel._tied_weights_keys = dict(ties.items() - of_head)


def _is_weight_of(model: Any, key: str, module: Any) -> bool:
    return key.endswith(".weight") and owner_of(model, key) is module


def _ties_of_factors(model: PreTrainedModel, ties: dict[str, str]) -> dict[str, str]:
    """The tie table with factors in place of the weights that were factored."""
    rewritten = {}
    for target, source in ties.items():
        if target.endswith(".weight") and isinstance(table := owner_of(model, target), FactoredTable):
            for part in table.factor_names:
                rewritten[target.removesuffix("weight") + part] = source.removesuffix("weight") + part
        else:
            rewritten[target] = source
    return rewritten


def freeze_packed_tables(model: nn.Module) -> None:
    """Let no part of tables in few bits ask for a gradient, as Transformers has each floating number that it loads."""
    for table in factored_tables(model).values():
        if isinstance(table, PackedTable):
            for name in table.factor_names:
                getattr(table, name).requires_grad_(False)


def untie_scales(model: PreTrainedModel) -> None:
    """Drop from the tie tables what tables of floating numbers have not."""
    for submodel in [module for module in model.modules() if isinstance(module, PreTrainedModel)]:
        for name in ("_tied_weights_keys", "all_tied_weights_keys"):
            ties = getattr(submodel, name, None) or {}
            if any(target.endswith(".scales") for target in ties):
                setattr(submodel, name, {key: tie for key, tie in ties.items() if not key.endswith(".scales")})


def _ignore_copies_on_save(model: Any) -> None:
    """Save buffers once, with the first module of a group."""
    copies = {
        f"{target.removesuffix('rows')}{name}"
        for target in model._tied_rows
        for name in model.get_submodule(target.rpartition(".")[0]).copied_names
    }
    model._keys_to_ignore_on_save = set(model._keys_to_ignore_on_save or []) | copies
