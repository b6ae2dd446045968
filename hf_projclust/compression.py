"""Compress a model's vocabulary table, and make a compressed model dense again.

Model in, model out: neither function changes its input, and the result shares no memory with it. How a table
is factored is decided in ``factoring`` and ``solvers``; files are written elsewhere.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from .configuration_projclust import FORMAT_VERSION, projclust_config_class
from .factoring import FactoringOptions, Preset, factor_table
from .loading import load_model
from .modeling_projclust import (
    ProjClustModelMixin,
    factored_tables,
    projclust_model_class,
    vocabulary_modules,
)


def compress(
    model_or_path: PreTrainedModel | str | Path,
    *,
    preset: Preset = "messi",
    num_clusters: int | None = None,
    compression: float | None = None,
    rank: int | None = None,
    seed: int = 0,
    num_starts: int = 4,
    max_rounds: int = 100,
    tolerance: float = 1e-5,
) -> Any:
    """Factor the vocabulary table of a model by projective clustering.

    The input embedding, and every module tied to it, is factored; an untied head stays dense. The result keeps
    the task head, dtype, device, generation config and ``name_or_path`` of the input.

    Args:
        model_or_path: A dense model, which is left untouched, or a folder or Hub id to load one from.
        preset: "messi", k subspaces of one rank (arXiv 2010.04290), or "svd", which is one subspace.
        num_clusters: Number of subspaces, k, 1 to the number of tokens. By default 5 for "messi".
        compression: Share of the table's numbers to save, between 0 and 1. Give this or ``rank``.
        rank: Coordinates that each row keeps, j, 1 to the width of the table. Give this or ``compression``.
        seed: Seed of the random starts. Equal arguments on one machine give equal results.
        num_starts: Random starts that race; the best one is finished.
        max_rounds: Rounds of clustering, at most.
        tolerance: Stop when a round lowers the error by a smaller share than this.

    Returns:
        A ``PreTrainedModel`` of the compressed counterpart of the input's class, such as ``ProjClustBertModel``.

    Raises:
        ValueError: If an option is out of its range, or the model cannot be compressed.
        TypeError: If the input is neither a Transformers model nor a path.
        FileNotFoundError: If the path is neither a folder nor a model on the Hub.

    Example:
        model = compress("distilbert/distilbert-base-uncased", num_clusters=5, compression=0.4)
        model.save_pretrained("distilbert-pc-k5")
    """
    options = FactoringOptions(
        preset=preset,
        num_clusters=num_clusters,
        compression=compression,
        rank=rank,
        seed=seed,
        num_starts=num_starts,
        max_rounds=max_rounds,
        tolerance=tolerance,
    )
    model = _own_model(model_or_path)
    if isinstance(model, ProjClustModelMixin):
        raise ValueError(
            f"{type(model).__name__} is compressed already; expected a dense model. Compress the dense model that "
            "it was made from, or hf_projclust.decompress() it first."
        )
    _check_config_class(model.config)
    modules = vocabulary_modules(model)
    _check_ties(modules)
    factors = factor_table(modules[0].weight.detach(), options)

    config_class = projclust_config_class(type(model.config))
    config = _with_class(model.config, config_class)
    config.projclust = {
        "format_version": FORMAT_VERSION,
        "embedding": factors.layout.to_dict(),
        "solver": factors.record,
    }
    named_modules = list(model.named_modules(remove_duplicate=False))
    replaced = {f"{name}.weight" for name, module in named_modules if module in modules}
    embedding_name = next(name for name, module in named_modules if module is modules[0])
    state_dict = {key: tensor for key, tensor in model.state_dict().items() if key not in replaced}
    state_dict |= {f"{embedding_name}.{part}": tensor for part, tensor in factors.tensors.items()}
    return _build(projclust_model_class(type(model), config_class), config, state_dict, like=model)


def decompress(model_or_path: PreTrainedModel | str | Path) -> Any:
    """Make a compressed model dense again: the native class, with the table that the factors describe.

    Args:
        model_or_path: A compressed model, which is left untouched, or a folder or Hub id to load one from.

    Returns:
        A ``PreTrainedModel`` of the native class, such as ``BertModel``, with equal outputs up to rounding.

    Raises:
        ValueError: If the model is not compressed.
        TypeError: If the input is neither a Transformers model nor a path.
        FileNotFoundError: If the path is neither a folder nor a model on the Hub.
    """
    model = _own_model(model_or_path)
    if not isinstance(model, ProjClustModelMixin):
        raise ValueError(
            f"{type(model).__name__} is not compressed; expected a model made by hf_projclust.compress(). "
            "Use the model as it is."
        )
    tables = factored_tables(model)
    names_of_factors = {f"{name}.{part}" for name in tables for part in ("coefficients", "bases", "rows")}
    state_dict = {key: tensor for key, tensor in model.state_dict().items() if key not in names_of_factors}
    embedding: Any = model.get_input_embeddings()
    dense = embedding.dense_weight().detach()
    state_dict |= {f"{name}.weight": dense for name in tables}
    config_class: Any = type(model.config)
    config = _with_class(model.config, config_class.native_class)
    del config.projclust
    return _build(type(model).native_class, config, state_dict, like=model)


def _own_model(model_or_path: Any) -> Any:
    """The model to read from: as given, or loaded from a path."""
    if isinstance(model_or_path, str | Path):
        return load_model(model_or_path)
    model = model_or_path
    if not isinstance(model, PreTrainedModel):
        raise TypeError(
            f"got a {type(model).__name__}; expected a Transformers model (PreTrainedModel), a folder, or a Hub id. "
            "Of a wrapper (PEFT, DDP, sentence-transformers), pass the model inside, with adapters merged."
        )
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ValueError(
            f"{type(model).__name__} has PEFT adapters; expected a plain model. Merge or unload them first."
        )
    if getattr(model, "hf_quantizer", None) is not None:
        raise ValueError(
            f"{type(model).__name__} is quantised; expected float weights. Load it without quantization_config, or "
            "dequantize() it first."
        )
    if any(tensor.is_meta for tensor in model.state_dict().values()):
        raise ValueError(
            f"{type(model).__name__} has weights that are not in memory (offloaded, or on the meta device); "
            "expected all of them on one device. Load the model without a device_map first."
        )
    return model


def _check_config_class(config: Any) -> None:
    """Refuse a configuration that no reader of the JSON would find again."""
    if config.model_type not in CONFIG_MAPPING or CONFIG_MAPPING[config.model_type] is not type(config):
        raise ValueError(
            f"the model's configuration is a {type(config).__name__} of model type {config.model_type!r}; expected one "
            "that AutoConfig finds by its model type, so that the compressed model can be loaded again. Register it "
            "with AutoConfig.register(), or use the native class."
        )


def _check_ties(modules: list[Any]) -> None:
    """Refuse modules that the configuration ties, but whose weights are not those of the table."""
    table = modules[0].weight
    for module in modules[1:]:
        if module.weight is not table and not torch.equal(module.weight, table):
            raise ValueError(
                f"the configuration ties a {type(module).__name__} to the vocabulary table, but its weights are "
                "others; expected equal weights. Keep both with model.config.tie_word_embeddings = False, or call "
                "model.tie_weights() if the module's own are not meant."
            )


def _with_class(config: Any, config_class: Any) -> Any:
    """The same configuration in another class, by the round trip that a save and a load would make."""
    made = config_class.from_dict(config.to_dict(), attn_implementation=config._attn_implementation)
    made.name_or_path = config.name_or_path
    return made


def _build(model_class: Any, config: Any, state_dict: dict[str, Tensor], *, like: Any) -> Any:
    """A model of a class from tensors, each copied, with what ``like`` has beyond its weights."""
    state_dict = {key: tensor.detach().clone() for key, tensor in state_dict.items()}
    model, report = model_class.from_pretrained(
        None, config=config, state_dict=state_dict, dtype=like.dtype, output_loading_info=True
    )
    if left := {kind: sorted(map(str, keys)) for kind, keys in report.items() if keys}:
        raise ValueError(
            f"{type(like).__name__} does not fit {model_class.__name__}: {left}; expected the modules of the native "
            "class. Undo what was added or replaced in the model (adapters, quantised layers) first."
        )
    requires_grad = {name: parameter.requires_grad for name, parameter in like.named_parameters()}
    of_table = next(iter(like.get_input_embeddings().parameters())).requires_grad
    for name, parameter in model.named_parameters():
        if name in state_dict and parameter.dtype != state_dict[name].dtype:
            parameter.data = state_dict[name]
        parameter.requires_grad_(requires_grad.get(name, of_table))
    model.name_or_path = model.config.name_or_path = like.name_or_path
    if model.can_generate():
        model.generation_config = copy.deepcopy(like.generation_config)
    return model.to(like.device).train(like.training)
