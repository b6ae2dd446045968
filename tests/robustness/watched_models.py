"""Tiny dense models, and what their methods are called with while they are built, loaded or saved."""

import copy
import inspect
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from conftest import TINY_MODELS
from safetensors import safe_open

BERT = TINY_MODELS["bert"].model_class


def has_parameters(function: Any, names: str) -> bool:
    """Whether the parameters of a function begin with these, in this order."""
    return list(inspect.signature(function).parameters)[: len(names.split())] == names.split()


def calls(name: str, use: Callable[[Any], Any]) -> list[list[Any]]:
    """What a method of a tiny model is given, call after call, while a function uses the model's class."""
    found: list[list[Any]] = []

    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        found.append([*args, *kwargs.values()])
        return getattr(super(made, self), name)(*args, **kwargs)

    made = type(BERT.__name__, (BERT,), {name: watched})
    use(made)
    return found


def build(model_class: Any = BERT) -> Any:
    """A dense model of a class."""
    return model_class(copy.deepcopy(TINY_MODELS["bert"].config))


def save(model_class: Any) -> None:
    """Save a dense model of a class."""
    with TemporaryDirectory() as folder:
        build(model_class).save_pretrained(folder)


def reload(model_class: Any = BERT, **attributes: Any) -> tuple[Any, dict[str, Any], set[str]]:
    """Save a dense model and load it again.

    Args:
        model_class: What it is loaded as.
        **attributes: What the model has when it is saved.

    Returns:
        The loaded model, Transformers' report of the load, and the names in the file.
    """
    model = build()
    for name, value in attributes.items():
        setattr(model, name, value)
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        with safe_open(Path(folder, "model.safetensors"), "pt") as file:
            stored = set(file.keys())
        return *model_class.from_pretrained(folder, output_loading_info=True), stored
