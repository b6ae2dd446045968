"""Shrink the vocabulary table of any Transformers model by projective clustering.

Importing this package registers the model type "projclust" with Transformers and does nothing else. The
registration waits until Transformers loads its own table of model types, so that the import stays light.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any

from wrapt import when_imported

if TYPE_CHECKING:
    from .compression import compress, decompress
    from .configuration_projclust import FactorLayout, ProjClustCheckpointError, ProjClustConfig

__version__ = "0.1.0"
__all__ = ["FactorLayout", "ProjClustCheckpointError", "ProjClustConfig", "compress", "decompress"]

_HOMES = {
    "FactorLayout": "configuration_projclust",
    "ProjClustCheckpointError": "configuration_projclust",
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


def __getattr__(name: str) -> Any:
    """Load a public name when it is first asked for (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
