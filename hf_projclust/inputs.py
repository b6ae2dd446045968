"""What ``compress`` and ``decompress`` are given: the model, its tables, and what neither can work with.

Nothing is factored here, and nothing is changed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from .configuration_projclust import PREFIX
from .embedding_projclust import check_factorable
from .loading import load_model
from .modeling_projclust import ProjClustModelMixin
from .vocabulary_projclust import vocabulary_modules


def own_model(model_or_path: PreTrainedModel | str | Path) -> Any:
    """The model to read from: as given, or loaded from a path.

    Args:
        model_or_path: A model in memory, or a folder or Hub id to load one from.

    Returns:
        The model, with all of its weights in memory, in float, and no adapters.

    Raises:
        ValueError: If the model is anything else.
        TypeError: If it is neither a Transformers model nor a path.
        FileNotFoundError: If the path is neither a folder nor a model on the Hub.
    """
    model: Any = load_model(model_or_path) if isinstance(model_or_path, str | Path) else model_or_path
    if not isinstance(model, PreTrainedModel):
        raise TypeError(
            f"got a {type(model).__name__}; expected a Transformers model (PreTrainedModel), a folder, or a Hub id. "
            "Of a wrapper (PEFT, DDP) pass the model inside, with adapters merged; of a SentenceTransformer st, put it "
            "back: st[0].model = compress(st[0].model, ...)."
        )
    if type(model).__name__.startswith(PREFIX) and not isinstance(model, ProjClustModelMixin):
        raise ValueError(
            f"{type(model).__name__} runs the code of its checkpoint (trust_remote_code); expected a model that runs "
            "that of this package. Load it again, after `import hf_projclust`."
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


def check_config_class(config: Any) -> None:
    """Refuse a configuration that no reader of the JSON would find again.

    Args:
        config: The model's configuration.

    Raises:
        ValueError: If AutoConfig would not make it from its JSON.
    """
    if config.model_type not in CONFIG_MAPPING or CONFIG_MAPPING[config.model_type] is not type(config):
        raise ValueError(
            f"the model's configuration is a {type(config).__name__} of model type {config.model_type!r}; expected one "
            "that AutoConfig finds by its model type, so that the compressed model can be loaded again. Register it "
            "with AutoConfig.register(), or use the native class."
        )


def dense_tables(model: Any) -> dict[str, list[Any]]:
    """The modules of the vocabulary table and of the head, as ``vocabulary_modules``, by what they hold.

    Some checkpoints hold two tables that their configuration ties (flan-T5 is one). Transformers keeps both, and the
    head is one of its own.

    Args:
        model: A dense ``PreTrainedModel``.

    Returns:
        Under "embedding" the modules of the one table, under "head" those of the other, or none.
    """
    groups, head = vocabulary_modules(model), model.get_output_embeddings()
    embedding = groups["embedding"]
    if head in embedding[1:] and not _same_weight(head, embedding[0]):
        return {"embedding": [module for module in embedding if module is not head], "head": [head]}
    return groups


def tables_to_factor(model: Any, *, embedding: bool, head: bool) -> dict[str, list[Any]]:
    """The modules of the tables that were asked for, refusing what the model has not.

    Args:
        model: A dense ``PreTrainedModel``.
        embedding: Whether the table is wanted.
        head: Whether a head with a table of its own is wanted.

    Returns:
        As ``dense_tables``, without what was not asked for.

    Raises:
        ValueError: If nothing is left, or what is asked for is not there or cannot be factored.
    """
    groups, kind = dense_tables(model), type(model).__name__
    if not embedding and not head:
        raise ValueError("embedding=False and head=False leave nothing to factor; expected one of them. Choose one.")
    if head and model.get_output_embeddings() is None:
        raise ValueError(
            f"head=True, but {kind} has no head of tokens (output embedding); expected a language model. Leave head "
            "out, or load the model by its language-model class."
        )
    if not embedding and not groups["head"]:
        raise ValueError(
            f"embedding=False, but the head of {kind} is tied to the embedding; expected a head with a table of its "
            "own. Leave embedding out: both share the factors."
        )
    asked = {"embedding": embedding, "head": head}
    wanted = {name: modules for name, modules in groups.items() if modules and asked[name]}
    for modules in wanted.values():
        _check_group(modules)
    return wanted


def _check_group(modules: list[Any]) -> None:
    """Refuse modules that cannot be factored, or that the configuration ties, but whose weights are others."""
    for module in modules:
        check_factorable(module)
        if not _same_weight(module, modules[0]):
            raise ValueError(
                f"the configuration ties a {type(module).__name__} to the vocabulary table, but its weights are "
                "others; expected equal weights. Call model.tie_weights() if the module's own are not meant, or leave "
                "the model dense."
            )


def _same_weight(module: Any, other: Any) -> bool:
    """Whether two modules hold one table; unknown weights, on the meta device, are taken to be tied as declared."""
    one, two = module.weight, other.weight
    return one is two or one.is_meta or two.is_meta or torch.equal(one, two)
