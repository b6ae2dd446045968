"""Whether two checkpoints can be compared: one architecture, one vocabulary, one width. No weights are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoConfig

from ..configuration_projclust import PREFIX, ProjClustConfigMixin
from ..loading import check_source, load_tokenizer

_SHAPES = ("vocab_size", "hidden_size", "num_hidden_layers")
_TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model", "*.tiktoken", "tekken.json")


def check_counterparts(folder: str | Path, against: str | Path, *, same_class: bool) -> str:
    """Refuse a dense model that a folder cannot have been made from.

    Args:
        folder: Folder of a model, compressed or not.
        against: Folder or Hub id of the dense model.
        same_class: Whether both must have been saved by one class; else the dense one may be loaded by that of the
            folder.

    Returns:
        Name of the native class of the folder, such as "BertForMaskedLM".

    Raises:
        FileNotFoundError: If one of them is not there.
        ValueError: If the second is compressed, or they differ in model type, vocabulary, width or depth, or in
            a class that is to be the same.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(
            f"{str(folder)!r} is not a folder; expected the folder of a compressed model. Check the spelling."
        )
    configs = []
    for path in (folder, against):
        check_source(path)
        try:
            configs.append(AutoConfig.from_pretrained(path))
        except OSError as error:
            raise FileNotFoundError(
                f"model {str(path)!r} could not be read; expected a folder with a config.json, or the id of a model on "
                f"the Hub that can be reached from here. Check the spelling. ({error})"
            ) from error
    config, base = configs
    if isinstance(base, ProjClustConfigMixin):
        raise ValueError(
            f"{str(against)!r} is compressed; expected the dense model that {str(folder)!r} was made from. Give the "
            "dense model's folder or Hub id."
        )
    described = [{"model type": each.model_type} | _shapes(each) for each in configs]
    if same_class:
        described = [{"class": _native_class(each)} | known for each, known in zip(configs, described, strict=True)]
    if differing := [name for name in described[0] if described[0][name] != described[1][name]]:
        one, other = (", ".join(f"{name} {each[name]}" for name in differing) for each in described)
        raise ValueError(
            f"{str(folder)!r} has {one}, but {str(against)!r} has {other}; expected models that are alike in these. "
            "Give the dense model that it was made from, with the same head."
        )
    return _native_class(config)


def shared_tokenizer(folder: str | Path, against: str | Path) -> Any:
    """Load the tokenizer of two models.

    Args:
        folder: Folder of a model, which may have no tokenizer.
        against: Folder or Hub id of the dense model, which may have none either.

    Returns:
        That of the dense model, else that of the folder.

    Raises:
        ValueError: If there is none, or the two do not give the same ids to the same tokens.
    """
    found = []
    reason: Exception | None = None
    for path in (against, folder):
        # Of a folder without a tokenizer's files Transformers makes one up for some model types.
        if Path(path).is_dir() and not any(any(Path(path).glob(pattern)) for pattern in _TOKENIZER_FILES):
            continue
        try:
            found.append(load_tokenizer(path))
        except ValueError as error:
            reason = error
    if not found:
        raise ValueError(
            f"no tokenizer can be read in {str(folder)!r}, nor for {str(against)!r}; expected one of the two to have "
            f"it. Save the tokenizer into one of them.{f' ({reason})' if reason else ''}"
        ) from reason
    if len(found) > 1 and found[0].get_vocab() != found[1].get_vocab():
        raise ValueError(
            f"the tokenizers of {str(folder)!r} and {str(against)!r} have different vocabularies; expected one, since "
            "figures of other tokens do not compare. Give the dense model that it was made from."
        )
    return found[0]


def _native_class(config: Any) -> str:
    return str((config.architectures or ["AutoModel"])[0]).removeprefix(PREFIX)


def _shapes(config: Any) -> dict[str, Any]:
    text_config = config.get_text_config()
    return {name: getattr(text_config, name, None) for name in _SHAPES}
