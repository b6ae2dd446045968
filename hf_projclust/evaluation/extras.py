"""Libraries that only an evaluation needs, imported when it does."""

from __future__ import annotations

import importlib
from typing import Any


def needed(module: str) -> Any:
    """Import a module of the extra ``evaluate``.

    Args:
        module: Its name, such as "scipy.stats".

    Returns:
        The module.

    Raises:
        ModuleNotFoundError: If it is not installed, with what to install.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != module.partition(".")[0]:
            raise
        raise ModuleNotFoundError(
            f"the package {error.name} is missing; an evaluation needs the extra 'evaluate'. Install it: "
            "pip install 'hf-projclust[evaluate]'.",
            name=error.name,
        ) from error
