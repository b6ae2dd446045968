"""How sources of token counts are written, what is refused before anything is counted, and how they are named.

A source is a string such as "corpus.txt", "words:en" or "0.3*dataset:NAME". Nothing is counted here.
"""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from .corpus import texts_of_path
from .given import given_numbers

_FORMS = (
    '"uniform", "tokenizer", "words:en,zh", "dataset:NAME", "dataset:NAME,CONFIG", "prompt:TEXT", or a text file or a '
    'folder of *.txt files, each with a weight in front if need be ("0.3*corpus.txt")'
)
_KINDS_WITH_VALUE = ("words", "dataset", "prompt")
_KINDS_WITHOUT_VALUE = ("uniform", "tokenizer")


class Source(NamedTuple):
    """One source.

    Attributes:
        text: As given.
        weight: How much it counts against the others.
        kind: "path" or what stands before the colon.
        value: What stands behind it: languages, a name, a prompt; or the path.
    """

    text: str
    weight: float
    kind: str
    value: str


def check_sources(sources: str | Sequence[str] | Sequence[float] | Tensor) -> None:
    """Refuse what can be refused without a tokenizer or the network, before a model is loaded.

    Args:
        sources: As for ``count_tokens``.

    Raises:
        ValueError: If a source, a weight, a language, or the counts given are not as ``count_tokens`` expects.
        FileNotFoundError: If there is no such file or folder.
        ModuleNotFoundError: If the package that a source needs is not installed.
    """
    written = written_sources(sources)
    if written is None:
        given_numbers(sources)
        return
    parsed = [parse_source(text) for text in written]
    for source in parsed:
        _check(source)
    if all(source.kind == "prompt" for source in parsed):
        raise ValueError(
            f"token counts from {quoted(written)} alone; expected the texts in which the prompt stands as well. Add a "
            'source of them, such as "words:en".'
        )


def describe_sources(sources: str | Sequence[str] | Sequence[float] | Tensor) -> str | list[str]:
    """Name sources for a configuration that may be published: of local files and folders, the bare name alone.

    Args:
        sources: As for ``count_tokens``.

    Returns:
        The string, or a list of the strings, or "tensor" for counts that were given.
    """
    written = written_sources(sources)
    if written is None:
        return "tensor"
    described = [without_path(parse_source(text)) for text in written]
    return described[0] if isinstance(sources, str) else described


def names_files(sources: Sequence[str]) -> bool:
    """Whether some of the sources are local files or folders, whose texts may change under their names."""
    parsed = [parse_source(text) for text in sources]
    return any(
        source.kind == "path" or (source.kind == "dataset" and _is_local(source.value.partition(",")[0].strip()))
        for source in parsed
    )


def written_sources(sources: Any) -> list[str] | None:
    """Sources as a list of strings, or None for numbers."""
    if isinstance(sources, str):
        return [sources]
    if isinstance(sources, Sequence) and sources and all(isinstance(source, str) for source in sources):
        return list(sources)
    return None


def parse_source(text: str) -> Source:
    """Take a source apart.

    Args:
        text: A source, with or without a weight in front.

    Returns:
        Its parts. What is of no known kind is a path; whether there is anything at it is not looked up.

    Raises:
        ValueError: If the weight is not a finite number above 0.
    """
    head, star, rest = text.partition("*")
    try:
        weight = float(head) if star else 1.0
    except ValueError:  # the star is part of a name or of a prompt
        weight, star = 1.0, ""
    if not (math.isfinite(weight) and weight > 0):
        raise ValueError(
            f'source {text!r} has the weight {head!r}; expected a finite number above 0, as in "0.3*{rest}".'
        )
    rest = rest if star else text
    kind, colon, value = rest.partition(":")
    if rest in _KINDS_WITHOUT_VALUE:
        return Source(text, weight, rest, "")
    if colon and kind in _KINDS_WITH_VALUE:
        return Source(text, weight, kind, value)
    return Source(text, weight, "path", rest)


def _check(source: Source) -> None:
    """Refuse a source that names nothing, a package that is missing, an unknown language, a path that is not there."""
    if source.kind in _KINDS_WITH_VALUE and not source.value.strip(" ,"):
        raise ValueError(f"source {source.text!r} has nothing after {source.kind + ':'!r}; expected one of {_FORMS}.")
    if source.kind == "dataset":
        import_package("datasets", "train")
        name = source.value.partition(",")[0].strip()
        if _is_local(name) and not os.path.isdir(name):
            raise FileNotFoundError(
                f"source {source.text!r} names a data set in a folder that is not there; expected a folder of text, "
                "CSV, JSON lines or Parquet files, or an id on the Hub. Check the spelling."
            )
    if source.kind == "words":
        known = import_package("wordfreq", "words").available_languages("best")
        for language in languages_of(source):
            if language not in known:
                raise ValueError(
                    f"source {source.text!r} names the language {language!r}; expected some of "
                    f"{', '.join(sorted(known))}. Use one of these, or count a text file or a data set instead."
                )
    if source.kind == "path":
        path = source.value
        if not (os.path.isfile(path) or os.path.isdir(path)):
            raise FileNotFoundError(
                f"source {source.text!r} is neither a file nor a folder; expected one of {_FORMS}. Check the spelling."
            )
        if next(texts_of_path(Path(path)), None) is None:
            raise no_text(source)


def languages_of(source: Source) -> list[str]:
    """Language codes of a source of the kind "words"."""
    return [language.strip() for language in source.value.split(",")]


def import_package(name: str, extra: str) -> Any:
    """Import a package of an optional extra, or raise a ModuleNotFoundError that names the command to install it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"token counts from this source need the package {name}, which could not be imported ({error}); install it "
            f"with: pip install 'hf-projclust[{extra}]'"
        ) from error


def no_text(source: Source) -> ValueError:
    """The error of a corpus or data set in which there is nothing to count."""
    return ValueError(
        f"source {source.text!r} has no text; expected at least one line, of a folder in a file *.txt, that is not "
        "blank. Check that it is the file or folder that you mean."
    )


def without_path(source: Source) -> str:
    """The source as given, weight included, but with the bare name of what is a local file or folder."""
    name, comma, config = source.value.partition(",")
    if source.kind == "path":
        bare = Path(os.path.abspath(source.value)).name
    elif source.kind == "dataset" and _is_local(name.strip()):
        bare = Path(os.path.abspath(name.strip())).name + comma + config
    else:
        return source.text
    return source.text[: len(source.text) - len(source.value)] + bare


def _is_local(dataset: str) -> bool:
    return os.path.exists(dataset) or os.path.isabs(dataset) or dataset.startswith((".", "~"))


def quoted(texts: Sequence[str]) -> str:
    """Sources as an error message names them."""
    return ", ".join(repr(text) for text in texts)
