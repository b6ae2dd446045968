"""Configuration of a compressed model: the native configuration plus the shapes of its factored tables.

One model type, "projclust", is registered with Transformers. Its JSON names the native type in
``base_model_type``; reading it makes, on demand, a subclass of the native configuration
(``ProjClustBertConfig`` for BERT), so that every native field, default and property holds. In memory
``model_type`` stays the native one, which tokenizers, PEFT and generation read; only the JSON says
"projclust", so that a Transformers without this plugin refuses the checkpoint instead of loading a random
table.

This file travels with a checkpoint: it imports torch, transformers and its siblings only.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import re
import shutil
import threading
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from .layout_projclust import FactorLayout, PackedLayout, ProjClustCheckpointError

FORMAT_VERSION = 1  # of tables of floating numbers
PACKED_FORMAT_VERSION = 2  # of tables in few bits
MOST_NUMBERS = 2**34  # of a table: four times the largest that is known, 262,144 x 16,384
# What is made one by one, whatever the weights are: by the ends of the names of such fields, the most that is taken,
# several times the most that is known.
MOST_PARTS = {
    ("layer", "layers", "groups", "group_num", "networks", "blocks"): 10_000,
    ("experts",): 100_000,
    ("labels",): 10_000_000,
}
TABLE_NAMES = ("embedding", "head")
PREFIX = "ProjClust"
CODE_FILES = (
    "checks_projclust.py",
    "configuration_projclust.py",
    "embedding_projclust.py",
    "head_projclust.py",
    "layout_projclust.py",
    "lookup_projclust.py",
    "modeling_projclust.py",
    "packed_projclust.py",
    "places_projclust.py",
    "resizing_projclust.py",
    "saving_projclust.py",
    "table_projclust.py",
    "vocabulary_projclust.py",
    "weight_projclust.py",
    "whole_folder_projclust.py",
)
_AUTO_MAP = {"AutoConfig": "configuration_projclust.ProjClustConfig"}  # making the config registers its models
_MADE_CLASSES: dict[type, Any] = {}
# Held while what all threads share is changed: made classes, Auto mappings, and what Transformers patches of its own as
# long as it loads a model.
SHARED_STATE = threading.RLock()

if TYPE_CHECKING:
    _NativeConfig = PreTrainedConfig
else:
    _NativeConfig = object


class ProjClustConfigMixin(_NativeConfig):
    """What a made configuration adds to its native base: ``projclust``, the JSON's two names, and code on demand."""

    native_class: ClassVar[Any]

    @property
    def factor_layouts(self) -> dict[str, FactorLayout]:
        """Shapes of the factored tables: of the "embedding" with all that is tied to it, of an untied "head", or both.

        Raises:
            ProjClustCheckpointError: If the configuration carries none, or is of another format.
        """
        section = getattr(self, "projclust", None)
        if not isinstance(section, dict) or not any(isinstance(section.get(name), dict) for name in TABLE_NAMES):
            raise ProjClustCheckpointError(
                f"{type(self).__name__} has projclust={section!r}; expected a dictionary with the shapes of a "
                "factored table under 'embedding' or 'head'. Make such a model with hf_projclust.compress(), or fetch "
                "the checkpoint again."
            )
        version = section.get("format_version")
        if type(version) is not int or version not in (FORMAT_VERSION, PACKED_FORMAT_VERSION):
            raise ProjClustCheckpointError(
                f"the checkpoint has format_version={section.get('format_version')!r}; this hf_projclust reads "
                f"{FORMAT_VERSION} and {PACKED_FORMAT_VERSION}. Install the hf_projclust that wrote it, or a newer one."
            )
        layouts = {name: FactorLayout.from_dict(section[name]) for name in TABLE_NAMES if name in section}
        if section["format_version"] != format_version(layouts):
            raise ProjClustCheckpointError(
                f"the checkpoint has format_version={section['format_version']} and tables of format "
                f"{format_version(layouts)}; expected one. The config.json is damaged: fetch the checkpoint again."
            )
        for name, layout in layouts.items():
            if layout.num_embeddings * layout.dim > MOST_NUMBERS or layout.num_parameters > MOST_NUMBERS:
                raise ProjClustCheckpointError(
                    f"the checkpoint's {name} is a table of {layout.num_embeddings:,} x {layout.dim:,} in "
                    f"{layout.num_parameters:,} numbers; expected at most {MOST_NUMBERS:,}. The config.json is "
                    "damaged: fetch the checkpoint again."
                )
        if "tied_head" in section and type(section["tied_head"]) is not bool:
            raise ProjClustCheckpointError(
                f"the checkpoint has tied_head={section['tied_head']!r}; expected true or false. The config.json is "
                "damaged: fetch the checkpoint again."
            )
        return layouts

    def set_factor_layouts(self, layouts: dict[str, FactorLayout]) -> None:
        """Put other shapes in place of all of these; configurations that were copied from this one keep theirs."""
        rest = {key: value for key, value in self.projclust.items() if key not in TABLE_NAMES}
        rest["format_version"] = format_version(layouts)
        self.projclust: dict[str, Any] = rest | {name: layout.to_dict() for name, layout in layouts.items()}

    @property
    def has_untied_head(self) -> bool:
        """Whether the head has a table of its own, whatever the native configuration says of ties."""
        return self.projclust.get("tied_head") is False

    @classmethod
    def get_config_dict(cls, *args: Any, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read the JSON, with the native model type in its place."""
        config_dict, unused = super().get_config_dict(*args, **kwargs)
        return _with_native_type(config_dict), unused

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Read as the native class does; what must not be run, made or opened is refused, before and after."""
        _check_no_kernels(config_dict)
        _check_counts(config_dict, cls.native_class)
        result = super().from_dict(config_dict, **kwargs)
        check_native_fields(result[0] if isinstance(result, tuple) else result)
        return result

    def to_json_string(self, use_diff: bool = True) -> str:
        """Write the JSON, with "projclust" as the model type."""
        fields = json.loads(super().to_json_string(use_diff=use_diff))
        fields["base_model_type"], fields["model_type"] = fields["model_type"], ProjClustConfig.model_type
        return json.dumps(fields, indent=2, sort_keys=True) + "\n"

    def to_json_file(self, json_file_path: str | PathLike[str], use_diff: bool = True) -> None:
        """Write the JSON, and beside it the code that its ``auto_map`` names, so that no copy is without it."""
        super().to_json_file(json_file_path, use_diff=use_diff)
        if getattr(self, "auto_map", None):
            for name in CODE_FILES:
                shutil.copyfile(Path(__file__).with_name(name), Path(json_file_path).with_name(name))

    @contextlib.contextmanager
    def standalone(self, wanted: bool | None) -> Iterator[None]:
        """Within the block, save with the code that loads the model, or without it; None leaves it as it is."""
        if wanted is None:
            yield
            return
        before = vars(self).pop("auto_map", None)
        if wanted:
            self.auto_map = dict(_AUTO_MAP)
        try:
            yield
        finally:
            vars(self).pop("auto_map", None)
            if before is not None:
                self.auto_map = before


class ProjClustConfig(PreTrainedConfig):
    """The registered entry: reading a "projclust" JSON gives a configuration made for its base model type."""

    model_type = "projclust"

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Make the configuration that ``base_model_type`` asks for.

        Args:
            config_dict: The content of a compressed model's config.json.
            **kwargs: As in ``PreTrainedConfig.from_dict``.

        Returns:
            An instance of the made class, or a pair with the unused arguments if ``return_unused_kwargs``.

        Raises:
            ProjClustCheckpointError: If the base type is missing or unknown, or the table's shapes are damaged.
        """
        base_model_type: Any = config_dict.get("base_model_type")
        known = isinstance(base_model_type, str) and base_model_type in CONFIG_MAPPING
        if not known or base_model_type == cls.model_type:
            raise ProjClustCheckpointError(
                f"the checkpoint's base_model_type is {base_model_type!r}; expected a model type of the installed "
                "Transformers, such as 'bert'. Upgrade transformers, or fetch the checkpoint again."
            )
        config_class = projclust_config_class(CONFIG_MAPPING[base_model_type])
        try:
            result = config_class.from_dict(_with_native_type(config_dict), **kwargs)
        except ProjClustCheckpointError:
            raise
        except Exception as error:  # native configurations raise what they like
            raise ProjClustCheckpointError(
                f"the fields of the checkpoint's {config_class.native_class.__name__} cannot be used "
                f"({type(error).__name__}: {error}); expected a config.json as save_pretrained() writes it, and "
                "arguments that this configuration takes. Fetch the checkpoint again."
            ) from error
        config = result[0] if isinstance(result, tuple) else result
        _ = config.factor_layouts
        return result


def projclust_config_class(native_class: type[PreTrainedConfig]) -> type[ProjClustConfigMixin]:
    """Make and register the compressed counterpart of a native configuration class.

    Args:
        native_class: A configuration class, such as ``BertConfig``.

    Returns:
        Its subclass, ``ProjClustBertConfig``: the same object for the same argument.
    """
    from .modeling_projclust import register_auto_classes

    with SHARED_STATE:  # no thread gets a class that another one has made and not registered yet
        if native_class not in _MADE_CLASSES:
            attributes = {"__module__": __name__, "native_class": native_class}
            bases = (ProjClustConfigMixin, native_class)
            made = _MADE_CLASSES[native_class] = type(f"{PREFIX}{native_class.__name__}", bases, attributes)
            register_auto_classes(made)
        return _MADE_CLASSES[native_class]


def format_version(layouts: dict[str, FactorLayout]) -> int:
    """The version that a reader must know for these tables."""
    is_packed = any(isinstance(layout, PackedLayout) for layout in layouts.values())
    return PACKED_FORMAT_VERSION if is_packed else FORMAT_VERSION


def register() -> None:
    """Tell ``AutoConfig`` of the model type "projclust". Calling it again changes nothing."""
    AutoConfig.register(ProjClustConfig.model_type, ProjClustConfig, exist_ok=True)


def _check_no_kernels(config_dict: dict[str, Any]) -> None:
    """Refuse a JSON that names attention code on the Hub, which Transformers would fetch and run."""
    for part in (config_dict, *(value for value in config_dict.values() if isinstance(value, dict))):
        for name in ("attn_implementation", "_attn_implementation", "_attn_implementation_internal"):
            if "/" in str(part.get(name)):
                raise ProjClustCheckpointError(
                    f"the checkpoint has {name}={part[name]!r}, code on the Hub; expected none, since the code of a "
                    "checkpoint is not run. Take it out of the config.json, and give attn_implementation to "
                    "from_pretrained() if you trust it."
                )


def _check_counts(config_dict: dict[str, Any], native_class: Any) -> None:
    """Refuse a JSON that asks for so many layers, experts or labels that making them would not end."""
    known = {*inspect.signature(native_class).parameters, *native_class.attribute_map, "num_labels"}
    for name in known & config_dict.keys():
        value: Any = config_dict[name]
        part = native_class.sub_configs.get(name)
        if isinstance(value, dict) and part is not None:
            part = CONFIG_MAPPING[value["model_type"]] if value.get("model_type") in CONFIG_MAPPING else part
            _check_counts(value, part)
        most = max((most for ends, most in MOST_PARTS.items() if name.endswith(ends)), default=None)
        if most is not None and isinstance(value, int) and value > most:
            raise ProjClustCheckpointError(
                f"the checkpoint has {name}={value:,}; expected at most {most:,}. The config.json is damaged: fetch "
                "the checkpoint again."
            )


def check_native_fields(config: Any) -> None:
    """Refuse what Transformers would open or reserve at the word of a config.json.

    Args:
        config: A configuration, compressed or not.

    Raises:
        ProjClustCheckpointError: If it names weights that are no safetensors file, or more tokens than there can be.
    """
    weights = getattr(config, "transformers_weights", None)
    if weights is not None and not re.fullmatch(r"[\w.-]+\.safetensors(\.index\.json)?", str(weights)):
        raise ProjClustCheckpointError(
            f"the checkpoint has transformers_weights={weights!r}; expected the name of a safetensors file in its own "
            "folder, since others can run code when they are opened. Fetch the checkpoint again."
        )
    vocab_size = getattr(config.get_text_config(), "vocab_size", None)
    if isinstance(vocab_size, int) and not 0 <= vocab_size <= MOST_NUMBERS:
        raise ProjClustCheckpointError(
            f"the checkpoint has vocab_size={vocab_size:,}; expected at most {MOST_NUMBERS:,}. The config.json is "
            "damaged: fetch the checkpoint again."
        )


def _with_native_type(config_dict: dict[str, Any]) -> dict[str, Any]:
    native = {key: value for key, value in config_dict.items() if key != "base_model_type"}
    return {**native, "model_type": config_dict.get("base_model_type", config_dict.get("model_type"))}


def __getattr__(name: str) -> type[ProjClustConfigMixin]:
    """Resolve ``ProjClustBertConfig`` and the like, which pickle and users look up by name (PEP 562)."""
    import transformers

    native_class = getattr(transformers, name.removeprefix(PREFIX), None) if name.startswith(PREFIX) else None
    if not (isinstance(native_class, type) and issubclass(native_class, PreTrainedConfig)):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return projclust_config_class(native_class)
