"""Compressed models: subclasses of the native ones, made on demand, with the vocabulary table factored.

``ProjClustBertForMaskedLM(ProjClustModelMixin, BertForMaskedLM)`` keeps every native head, signature and
state-dict name. Before the native ``post_init`` runs, the module of ``get_input_embeddings()`` and every module
whose weight is tied to it are factored in place, and the tie table is rewritten from weights to factors; an untied
head, if the configuration says so, by factors of its own.

What of Transformers' models is overridden or set here: ``from_pretrained``, ``_load_pretrained_model``,
``_from_config``, ``post_init``, ``get_submodule``, ``tie_weights``, ``initialize_weights``,
``_adjust_missing_and_unexpected_keys``, ``is_custom_code``; ``_tied_weights_keys``, ``all_tied_weights_keys``,
``_tp_plan``, ``_keys_to_ignore_on_save``, ``_keys_to_ignore_on_load_unexpected``. Saving is in ``saving_projclust``,
resizing in ``resizing_projclust``.

This file travels with a checkpoint: it imports torch, transformers and its siblings only.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import PreTrainedConfig
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

from .checks_projclust import check_files, check_weight_names, damage_of
from .configuration_projclust import (
    PREFIX,
    SHARED_STATE,
    ProjClustConfigMixin,
    projclust_config_class,
)
from .embedding_projclust import unpack_in_place
from .layout_projclust import ProjClustCheckpointError
from .packed_projclust import PackedTable
from .resizing_projclust import ResizingMixin
from .saving_projclust import SavingMixin
from .table_projclust import FACTOR_NAMES, FactoredTable
from .vocabulary_projclust import (
    factor_vocabulary,
    factored_tables,
    freeze_packed_tables,
    owner_of,
    untie_scales,
    vocabulary_modules,
)

_MADE_CLASSES: dict[tuple[type, type], Any] = {}
_TABLE_IN_PEFT = "embeddings.word_embeddings"


class ProjClustModelMixin(SavingMixin, ResizingMixin):
    """What a made model class adds to its native base."""

    native_class: ClassVar[Any]

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        """Build as the native class does; of a composite's configuration a text model takes the text part."""
        if type(config) is not self.config_class:
            config = _text_part(config, self.config_class)
        super().__init__(config, *args, **kwargs)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | PathLike[str] | None, *args: Any, **kwargs: Any
    ) -> Any:
        """Load as the native class does, from safetensors files only, and one model at a time.

        While Transformers builds a model to fill, nothing ties weights in any thread: of two loads at once neither
        would find its tied tensors, and no model would be tied any more.

        Args:
            pretrained_model_name_or_path: As in the native class.
            *args: As in the native class.
            **kwargs: As in the native class; ``use_safetensors=False`` is refused.

        Raises:
            ProjClustCheckpointError: If the checkpoint is damaged, or its weights are pickled.
            ValueError: If pickled weights are asked for.
        """
        if kwargs.get("use_safetensors") is False or kwargs.get("weights_only") is False:
            raise ValueError(
                f"{cls.__name__} was to be loaded from pickled weights (use_safetensors=False or weights_only=False), "
                "which can run code; expected safetensors. Leave the argument out."
            )
        if pretrained_model_name_or_path is not None and not kwargs.get("state_dict"):
            folder = Path(pretrained_model_name_or_path, kwargs.get("subfolder") or "")
            check_weight_names(folder, kwargs.get("variant"))
            kwargs["use_safetensors"] = True
        with SHARED_STATE:
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    @staticmethod
    def _load_pretrained_model(model: Any, state_dict: Any, checkpoint_files: Any, *args: Any, **kwargs: Any) -> Any:
        if state_dict is None and checkpoint_files is not None:
            check_files(model, checkpoint_files)
        of_native = super()._load_pretrained_model
        loaded = of_native(model, state_dict, checkpoint_files, *args, **kwargs)
        freeze_packed_tables(model)
        return loaded

    @classmethod
    def _from_config(cls, config: Any, **kwargs: Any) -> Any:
        """Build as the native class does, and first without memory, so that shapes that do not fit reserve none."""
        with torch.device("meta"):
            super()._from_config(copy.deepcopy(config), **kwargs)
        return super()._from_config(config, **kwargs)

    def post_init(self) -> None:
        """Factor the vocabulary table, then finish as the native class does."""
        factor_vocabulary(self)
        super().post_init()
        self.add_model_tags(["projclust"])  # which every way to the Hub puts into the card, that of PEFT's adapters too
        # Tensor-parallel plans split a dense table by rows or columns, which means nothing to its factors.
        factored = set(factored_tables(self))
        self._tp_plan = {name: plan for name, plan in (self.tp_plan or {}).items() if name not in factored}

    def get_submodule(self, target: str) -> nn.Module:
        """Find a module by name; any model finds its table by the name that PEFT's prompt tuning asks for.

        PEFT knows the table by that name, or as the parameter with as many rows as the vocabulary, and here no
        parameter has as many.
        """
        try:
            return super().get_submodule(target)
        except AttributeError:
            if target != _TABLE_IN_PEFT:
                raise
            return self.get_input_embeddings()

    def tie_weights(self, missing_keys: set[str] | None = None, recompute_mapping: bool = True) -> None:
        """Tie as the native class does; then give tied modules the row order of the stored one."""
        super().tie_weights(missing_keys=missing_keys, recompute_mapping=recompute_mapping)
        for factored in factored_tables(self).values():
            factored.order_rows()
        for target, source in self._tied_rows.items():
            table, stored = owner_of(self, target), owner_of(self, source)
            if not (isinstance(table, FactoredTable) and isinstance(stored, FactoredTable)):
                continue  # PEFT has put a wrapper in the place of one
            if stored.rows.is_meta and not table.rows.is_meta:
                raise ValueError(
                    f"{type(self).__name__} is to be loaded with offload_buffers=True, and {target} copies a row order "
                    "that would be on disk; expected it in memory, where it takes 4 bytes a token. Leave "
                    "offload_buffers out: all parameters are offloaded without it."
                )
            # Parameters that are offloaded are on the meta device between uses; buffers are not.
            device = stored.rows.device if table.coefficients.is_meta else table.coefficients.device
            for name in table.copied_names:
                # A copy: what saves sharded models would write both names, and refuses names that share memory.
                setattr(table, name, getattr(stored, name).to(device, copy=True))
                if missing_keys is not None:
                    missing_keys.discard(f"{target.removesuffix('rows')}{name}")

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """Fill factors in memory that no checkpoint has filled; then initialise the rest as the native class does."""
        for table in factored_tables(self).values():
            if not (table._is_hf_initialized or table.coefficients.is_meta):
                table.init_factors(getattr(self.config.get_text_config(), "initializer_range", None) or 0.02)
        super().initialize_weights()

    def _adjust_missing_and_unexpected_keys(self, loading_info: Any) -> None:
        super()._adjust_missing_and_unexpected_keys(loading_info)
        # A body, or another head, leaves the factors of the file's head over, as it would the dense one.
        damage = damage_of(self, loading_info, may_leave_over="head" in self.config.factor_layouts)
        if damage is not None:
            # Transformers reports and raises for these keys itself, in place of the error below.
            for keys in (loading_info.missing_keys, loading_info.mismatched_keys, loading_info.unexpected_keys):
                keys.clear()
            raise ProjClustCheckpointError(f"{self.config.name_or_path}: {damage}")

    def requires_grad_(self, requires_grad: bool = True) -> Any:
        """As in the native class; tables in few bits, which cannot be trained, stay frozen."""
        for parameter in self.parameters():
            parameter.requires_grad_(requires_grad and parameter.is_floating_point())
        freeze_packed_tables(self)
        return self

    def dequantize_factors(self) -> Any:
        """Put float factors in the place of those in few bits, in this model, so that they can be trained.

        They give the same outputs, up to rounding, and take as much memory as float factors of the same ranks. A model
        without factors in few bits is left as it is.

        Returns:
            This model.

        Raises:
            ValueError: If a table is not in memory.
        """
        if any(
            isinstance(table, PackedTable) and table.coefficients.is_meta for table in factored_tables(self).values()
        ):
            raise ValueError(
                f"{type(self).__name__} has tables in few bits that are not in memory (offloaded, or on the meta "
                "device); expected them on a device. Load the model without a device_map first."
            )
        layouts, done = dict(self.config.factor_layouts), {}
        for name, modules in vocabulary_modules(self).items():
            packed = [module for module in modules if isinstance(module, PackedTable)]
            for module in packed:
                shared = id(module.coefficients)
                if shared not in done:
                    layouts[name], tensors = module.float_factors()
                    done[shared] = {part: nn.Parameter(tensors[part]) for part in FACTOR_NAMES}
                unpack_in_place(module, done[shared])
        if done:
            untie_scales(self)
        self.config.set_factor_layouts(layouts)
        return self

    @classmethod
    def is_custom_code(cls) -> bool:
        """No: natively built submodules must be initialised and converted as in the native model."""
        return False


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
    with SHARED_STATE:
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
    if not isinstance(config, ProjClustConfigMixin):
        raise ProjClustCheckpointError(
            f"a compressed model was to be built from a {type(config).__name__}; expected a {config_class.__name__}, "
            "which says how its table is factored. Make the model with hf_projclust.compress(), or load it by an Auto "
            "class."
        )
    text_config = config.get_text_config()
    part = config_class.from_dict(text_config.to_dict(), attn_implementation=text_config._attn_implementation)
    part.name_or_path, part.projclust = config.name_or_path, config.projclust
    return part


def __getattr__(name: str) -> type:
    """Resolve ``ProjClustBertModel`` and the like, which pickle and users look up by name (PEP 562)."""
    import transformers

    native_class = getattr(transformers, name.removeprefix(PREFIX), None) if name.startswith(PREFIX) else None
    native_config: type[PreTrainedConfig] | None = getattr(native_class, "config_class", None)
    if not isinstance(native_class, type) or native_config is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return projclust_model_class(native_class, projclust_config_class(native_config))
