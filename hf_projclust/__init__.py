"""Shrink the vocabulary table of any Transformers model by projective clustering.

Importing this package registers the model type "projclust" with Transformers and does nothing else. The
registration waits until Transformers loads its own table of model types, so that the import stays light. Two more
things wait: models that are pushed get a model card, and a Trainer that writes a card keeps it (``cards``).
"""

from __future__ import annotations

import importlib
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any

from wrapt import when_imported, wrap_function_wrapper

if TYPE_CHECKING:
    from .compression import compress, decompress
    from .configuration_projclust import ProjClustConfig
    from .layout_projclust import FactorLayout, PackedLayout, ProjClustCheckpointError

__version__ = "0.1.0"
__all__ = ["FactorLayout", "PackedLayout", "ProjClustCheckpointError", "ProjClustConfig", "compress", "decompress"]

_HOMES = {
    "FactorLayout": "layout_projclust",
    "PackedLayout": "layout_projclust",
    "ProjClustCheckpointError": "layout_projclust",
    "ProjClustConfig": "configuration_projclust",
    "compress": "compression",
    "decompress": "compression",
}


@when_imported("transformers.models.auto.configuration_auto")
def _load(_: ModuleType) -> None:
    importlib.import_module(".configuration_projclust", __name__)


# Not in the same hook: if this module is imported first, it is what imports Transformers' table.
@when_imported(f"{__name__}.configuration_projclust")
def _register(module: Any) -> None:
    module.register()


def _from_cards(name: str, *args: Any, **kwargs: Any) -> None:
    getattr(importlib.import_module(".cards", __name__), name)(*args, **kwargs)


@when_imported(f"{__name__}.modeling_projclust")
def _write_cards(module: Any) -> None:
    module.ProjClustModelMixin.write_card = staticmethod(partial(_from_cards, "write_card"))


# The Trainer replaces README.md and offers no hook to add to it.
@when_imported("transformers.trainer")
def _keep_cards(module: Any) -> None:
    if not hasattr(module.Trainer.create_model_card, "__wrapped__"):
        wrap_function_wrapper(module, "Trainer.create_model_card", partial(_from_cards, "keep_in_trainer_card"))


def __getattr__(name: str) -> Any:
    """Load a public name when it is first asked for (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
