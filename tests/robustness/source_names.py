"""Which names that other libraries do not document the source of this package uses, and where.

Found in the source: private names that are imported, read, set, passed or asked for by ``getattr``, and what is
imported from modules without public documentation. Found in the classes: what they override of other libraries'
classes. Names that are only put together at run time are not found. What is relied on is in ``test_private_apis.py``.
"""

import ast
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hf_projclust

LIBRARIES = (
    "accelerate",
    "huggingface_hub",
    "peft",
    "safetensors",
    "torch",
    "torchao",
    "transformers",
    "typer",
    "tqdm",
)
# Modules below the top whose content is documented for users; of torch all are whose names do not begin with "_".
DOCUMENTED = ("huggingface_hub.errors", "safetensors.torch", "torchao.quantization", "torchao.quantization.granularity")
DOCUMENTED += ("transformers.utils",)
# What users are told to override.
DOCUMENTED_HOOKS = {"compute_loss", "extra_repr", "forward", "model_type", "on_log", "on_step_end", "on_train_begin"}
DOCUMENTED_HOOKS |= {"on_train_end"}
PACKAGE = Path(hf_projclust.__file__).parent


def used_names(foreign: set[str]) -> dict[str, str]:
    """Undocumented names in the source of the package.

    Args:
        foreign: Attributes of other libraries' objects, which are theirs although this package sets them too.

    Returns:
        The places of each, first of all: dotted paths of what is imported, bare names of attributes and arguments.
    """
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}
    own = {name for tree in trees.values() for name in _defined(tree)} - foreign
    found: dict[str, str] = {}
    for path, tree in trees.items():
        for node in ast.walk(tree):
            for name in (*_imported(node), *(name for name in _attributes(node) if name not in own)):
                found.setdefault(name, f"{path.relative_to(PACKAGE.parent)}:{getattr(node, 'lineno', 0)}")
    return found


def overridden_names(stand_ins: dict[type, type]) -> dict[str, str]:
    """Attributes of other libraries' classes that classes of the package put their own in the place of.

    Args:
        stand_ins: Classes that get a base at run time, with a base of that kind.

    Returns:
        The class that has each, by the name.
    """
    found: dict[str, str] = {}
    for module in pkgutil.walk_packages([str(PACKAGE)], "hf_projclust."):
        if module.name.endswith("__main__"):
            continue
        for _, ours in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if ours.__module__ != module.name:
                continue
            bases = [*ours.__mro__[1:], *stand_ins.get(ours, object).__mro__]
            theirs = [base for base in bases if base.__module__.split(".")[0] in LIBRARIES]
            for name in vars(ours):
                is_made = name.startswith("__") or name == "_abc_impl" or name in DOCUMENTED_HOOKS
                if not is_made and any(name in vars(base) for base in theirs):
                    found.setdefault(name, ours.__qualname__)
    return found


def _imported(node: ast.AST) -> Iterator[str]:
    """Dotted paths that an import takes from where there is no documentation."""
    if isinstance(node, ast.Import):
        paths = [(alias.name, "") for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
        paths = [(node.module, alias.name) for alias in node.names]
    else:
        return
    for module, name in paths:
        root, *rest = module.split(".")
        if root not in LIBRARIES:
            continue
        is_private = any(part.startswith("_") or part == "prototype" for part in (*rest, name))
        if is_private or (rest and root != "torch" and module not in DOCUMENTED):
            yield f"{module}.{name}".rstrip(".")


def _attributes(node: ast.AST) -> Iterator[str]:
    """Private names that are read, set, passed, defined, or asked for by a string."""
    names: list[Any] = []
    if isinstance(node, ast.Attribute):
        names = [node.attr]
    elif isinstance(node, ast.keyword):
        names = [node.arg]
    elif isinstance(node, ast.ClassDef):
        targets = [target for part in node.body for target in getattr(part, "targets", [getattr(part, "target", part)])]
        names = [getattr(target, "name", getattr(target, "id", None)) for target in targets]
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id.endswith("attr"):
        names = [argument.value for argument in node.args[1:2] if isinstance(argument, ast.Constant)]
    return (name for name in names if name and name.startswith("_") and not name.startswith("__"))


def _defined(tree: ast.AST) -> Iterator[str]:
    """Names that a module gives a meaning of its own."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.id if isinstance(node, ast.Name) else node.attr
