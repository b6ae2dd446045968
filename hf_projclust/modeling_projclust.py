"""Compressed models: subclasses of the native ones, made on demand, with the vocabulary table factored.

``ProjClustBertForMaskedLM(ProjClustModelMixin, BertForMaskedLM)`` keeps every native head, signature and
state-dict name. Before the native ``post_init`` runs, the module of ``get_input_embeddings()`` and every module
whose weight is tied to it are factored in place, and the tie table is rewritten from weights to factors.

The private hooks of Transformers that are overridden here: ``post_init``, ``tie_weights``,
``initialize_weights``, ``_adjust_missing_and_unexpected_keys``, ``_resize_token_embeddings``, ``is_custom_code``.

This file travels with a checkpoint: it imports torch, transformers and its two siblings only.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import (
    get_checkpoint_conversion_mapping,
    register_checkpoint_conversion_mapping,
)
from transformers.models.auto import (
    feature_extraction_auto,
    image_processing_auto,
    modeling_auto,
    processing_auto,
    tokenization_auto,
    video_processing_auto,
)
from transformers.models.auto.auto_factory import _LazyAutoMapping

from .configuration_projclust import (
    PREFIX,
    ProjClustCheckpointError,
    ProjClustConfigMixin,
    projclust_config_class,
)
from .embedding_projclust import FACTOR_NAMES, FactoredTable, factor_in_place

_MADE_CLASSES: dict[tuple[type, type], Any] = {}

if TYPE_CHECKING:
    _NativeModel = PreTrainedModel
else:
    _NativeModel = object


class ProjClustModelMixin(_NativeModel):
    """What a made model class adds to its native base."""

    native_class: ClassVar[Any]

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        """Build as the native class does; of a composite's configuration a text model takes the text part."""
        if type(config) is not self.config_class:
            config = _text_part(config, self.config_class)
        super().__init__(config, *args, **kwargs)

    def post_init(self) -> None:
        """Factor the vocabulary table, then finish as the native class does."""
        _factor_vocabulary(self)
        super().post_init()
        # Tensor-parallel plans split a dense table by rows or columns, which means nothing to its factors.
        factored = set(factored_tables(self))
        self._tp_plan = {name: plan for name, plan in (self.tp_plan or {}).items() if name not in factored}

    def tie_weights(self, missing_keys: set[str] | None = None, recompute_mapping: bool = True) -> None:
        """Tie as the native class does; then give tied modules the row order of the input embedding."""
        super().tie_weights(missing_keys=missing_keys, recompute_mapping=recompute_mapping)
        rows: Any = self.get_input_embeddings().rows
        for name, table in factored_tables(self).items():
            if f"{name}.rows" in (self._keys_to_ignore_on_save or ()):
                table.rows = rows.to(table.coefficients.device)
                if missing_keys is not None:
                    missing_keys.discard(f"{name}.rows")

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """Fill factors that no checkpoint has filled; then initialise the rest as the native class does."""
        for table in factored_tables(self).values():
            if not table._is_hf_initialized:
                table.init_factors(getattr(self.config.get_text_config(), "initializer_range", None) or 0.02)
        super().initialize_weights()

    def _adjust_missing_and_unexpected_keys(self, loading_info: Any) -> None:
        super()._adjust_missing_and_unexpected_keys(loading_info)
        damage = _damage(factored_tables(self), loading_info)
        if damage is not None:
            # Transformers reports and raises for these keys itself, in place of the error below.
            for keys in (loading_info.missing_keys, loading_info.mismatched_keys, loading_info.unexpected_keys):
                keys.clear()
            raise ProjClustCheckpointError(f"{self.config.name_or_path}: {damage}")

    def _resize_token_embeddings(
        self, new_num_tokens: int | None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Module:
        embedding: Any = self.get_input_embeddings()
        size = embedding.num_embeddings if new_num_tokens is None else new_num_tokens
        if pad_to_multiple_of is not None:
            size = -(-size // pad_to_multiple_of) * pad_to_multiple_of
        if size != embedding.num_embeddings:
            raise NotImplementedError(
                f"resize_token_embeddings was asked for {size:,} tokens; a factored table keeps its "
                f"{embedding.num_embeddings:,}. Resize the dense model, hf_projclust.decompress(model), and "
                "compress the result."
            )
        return embedding

    @classmethod
    def is_custom_code(cls) -> bool:
        """No: natively built submodules must be initialised and converted as in the native model."""
        return False


def factored_tables(model: nn.Module) -> dict[str, FactoredTable]:
    """Every factored module of a model, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, FactoredTable)}


def vocabulary_modules(model: Any) -> list[Any]:
    """The module of the input embedding, and every module whose weight is tied to it.

    Args:
        model: A ``PreTrainedModel``, dense.

    Returns:
        The modules, the input embedding first.

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
    modules: list[Any] = [embedding]
    ties = model.get_expanded_tied_weights_keys(all_submodels=True)
    grew = True
    while grew:
        grew = False
        for pair in ties.items():
            ends = [_owner(model, key) for key in pair if key.endswith(".weight")]
            if len(ends) == 2 and any(end in modules for end in ends):
                added = [end for end in ends if end is not None and end not in modules]
                modules += added
                grew = grew or bool(added)
    return modules


def projclust_model_class(native_class: Any, config_class: type[ProjClustConfigMixin]) -> Any:
    """Make the compressed counterpart of a native model class.

    Args:
        native_class: A model class, such as ``BertForMaskedLM``.
        config_class: The made configuration class that it is built from.

    Returns:
        Its subclass, ``ProjClustBertForMaskedLM``: the same object for the same arguments.
    """
    native_config = config_class.native_class
    if native_class.config_class is native_config.sub_configs.get("text_config"):
        config_class = projclust_config_class(native_class.config_class)
    key = (native_class, config_class)
    if key not in _MADE_CLASSES:
        name = f"{PREFIX}{native_class.__name__}"
        conversions = get_checkpoint_conversion_mapping(native_class.__name__)
        if conversions is not None:  # some are looked up by class name, and would not be found under the made one
            register_checkpoint_conversion_mapping(name, conversions, overwrite=True)
        attributes = {"__module__": __name__, "native_class": native_class, "config_class": config_class}
        _MADE_CLASSES[key] = type(name, (ProjClustModelMixin, native_class), attributes)
    return _MADE_CLASSES[key]


def register_auto_classes(config_class: Any) -> None:
    """Enter a made configuration class in every Auto mapping in which its native base stands.

    Args:
        config_class: A class made by ``projclust_config_class``.
    """
    native_config = config_class.native_class
    for mapping, native_models in _entries(modeling_auto, native_config):
        if isinstance(native_models, list | tuple):
            made: Any = tuple(projclust_model_class(model, config_class) for model in native_models)
        else:
            made = projclust_model_class(native_models, config_class)
        mapping.register(config_class, made, exist_ok=True)
    for module in (
        feature_extraction_auto,
        image_processing_auto,
        processing_auto,
        tokenization_auto,
        video_processing_auto,
    ):
        for mapping, processor in _entries(module, native_config):
            mapping.register(config_class, processor, exist_ok=True)


def _entries(module: Any, native_config: type) -> Iterator[tuple[Any, Any]]:
    """Each Auto mapping of a module in which a configuration class stands, with what stands there."""
    for mapping in [value for value in vars(module).values() if isinstance(value, _LazyAutoMapping)]:
        if native_config in mapping:
            try:
                yield mapping, mapping[native_config]
            except ValueError:  # a mapping names a class that this Transformers does not export
                continue


def _text_part(config: Any, config_class: Any) -> Any:
    """The text part of a composite's configuration, with the factors of the composite, whose table it has."""
    text_config = config.get_text_config()
    part = config_class.from_dict(text_config.to_dict(), attn_implementation=text_config._attn_implementation)
    part.name_or_path, part.projclust = config.name_or_path, config.projclust
    return part


def _factor_vocabulary(model: Any) -> None:
    layout = model.config.embedding_layout
    modules = vocabulary_modules(model)
    shape = tuple(modules[0].weight.shape)  # those of tied modules may differ: tying replaces their weights
    if shape != (layout.num_embeddings, layout.dim):
        raise ProjClustCheckpointError(
            f"{type(model).__name__} has a vocabulary table of {shape[0]:,} x {shape[1]}; its configuration "
            f"describes a factored one of {layout.num_embeddings:,} x {layout.dim}. The config.json is "
            "damaged, or vocab_size or the width was changed: fetch the checkpoint again."
        )
    submodels = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    ties = {submodel: submodel.get_expanded_tied_weights_keys(all_submodels=False) for submodel in submodels}
    for module in modules:
        if not isinstance(module, FactoredTable):
            factor_in_place(module, layout)
    for submodel in submodels:
        if ties[submodel]:
            submodel._tied_weights_keys = _ties_of_factors(submodel, ties[submodel])
    for submodel in submodels:
        if submodel is not model:
            submodel.all_tied_weights_keys = submodel.get_expanded_tied_weights_keys(all_submodels=True)
    # The row order is stored once, with the input embedding; tie_weights copies it to the others.
    tied_rows = {f"{name}.rows" for name, table in factored_tables(model).items() if table is not modules[0]}
    model._keys_to_ignore_on_save = set(model._keys_to_ignore_on_save or []) | tied_rows


def _ties_of_factors(model: PreTrainedModel, ties: dict[str, str]) -> dict[str, str]:
    """The tie table with factors in place of the weights that were factored."""
    rewritten = {}
    for target, source in ties.items():
        if target.endswith(".weight") and isinstance(_owner(model, target), FactoredTable):
            for part in FACTOR_NAMES:
                rewritten[target.removesuffix("weight") + part] = source.removesuffix("weight") + part
        else:
            rewritten[target] = source
    return rewritten


def _owner(model: Any, key: str) -> nn.Module | None:
    """The module that holds a parameter; None where a class names one that this instance does not have."""
    try:
        return model.get_submodule(key.rpartition(".")[0])
    except AttributeError:
        return None


def _damage(tables: dict[str, FactoredTable], loading_info: Any) -> str | None:
    """What is wrong with the factors that a checkpoint gave, or None."""
    parts = (*FACTOR_NAMES, "rows")
    keys = {f"{name}.{part}" for name in tables for part in parts}
    if missing := sorted(keys & set(loading_info.missing_keys)):
        return (
            f"the checkpoint has no {', '.join(missing)}; expected every factor of the vocabulary table. Without it "
            "the table would be random: fetch or save the checkpoint again."
        )
    if left_over := sorted(key for key in loading_info.unexpected_keys if key.rpartition(".")[2] in parts):
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
        if not table.rows.is_meta and not _is_permutation(table.rows):
            return (
                f"{name}.rows assigns tokens to stored rows {int(table.rows.min())} to {int(table.rows.max())}; "
                f"expected each of 0 to {len(table.rows) - 1} once. The checkpoint is damaged: fetch or save it "
                "again."
            )
    return None


def _is_permutation(rows: torch.Tensor) -> bool:
    in_order = torch.arange(len(rows), device=rows.device, dtype=rows.dtype)
    return torch.equal(rows.sort().values, in_order)


def __getattr__(name: str) -> type:
    """Resolve ``ProjClustBertModel`` and the like, which pickle and users look up by name (PEP 562)."""
    import transformers

    native_class = getattr(transformers, name.removeprefix(PREFIX), None) if name.startswith(PREFIX) else None
    native_config: type[PreTrainedConfig] | None = getattr(native_class, "config_class", None)
    if not isinstance(native_class, type) or native_config is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return projclust_model_class(native_class, projclust_config_class(native_config))
