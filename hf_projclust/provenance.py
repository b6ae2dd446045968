"""Where a compressed model comes from and what made it: the part of its configuration that its card is written from.

Nothing here is guessed: what the base model's card does not say is left out, and a local path is never the name of a
base model. Cards themselves are written in ``cards``.
"""

from __future__ import annotations

import datetime
import platform
import re
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import ModelCard, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError, RemoteEntryNotFoundError
from huggingface_hub.utils import httpx, validate_repo_id
from transformers.utils import logging
from yaml import YAMLError

from . import __version__

logger = logging.get_logger(__name__)

# What holds of a compressed model as it does of its base.
INHERITED = ("license", "license_name", "license_link", "language", "pipeline_tag", "library_name")
_LIBRARIES = ("transformers", "sentence-transformers")  # those that load a compressed model
_LANGUAGE = re.compile(r"[a-z]{2,3}(-\w+)?|code|multilingual")


def provenance(
    architecture: str, name_or_path: str | None, *, base_model: str | None, loaded_here: bool
) -> dict[str, Any]:
    """Describe the base model of a compressed one, and what it is made with, in JSON types.

    Args:
        architecture: Name of the model's native class.
        name_or_path: Where the base model was loaded from: a folder, a Hub id, or nothing.
        base_model: The base model's id on the Hub, where the caller knows better.
        loaded_here: Whether it was loaded for this by its name alone; a model that was given may have been trained
            since, or be of any revision.

    Returns:
        "architecture"; under "base_model" and "base_revision" the id and revision on the Hub, as far as they are known,
        and under "is_copy" whether the weights are known to be those of the base model; under "inherited" what the base
        model's card says of licence, languages and task; "date" (UTC) and "versions".
    """
    found: dict[str, Any] = {"architecture": architecture}
    if base_model is not None:
        found |= {"base_model": base_model, "is_copy": True}
    elif (snapshot := _snapshot(name_or_path)) is not None:
        found |= {"base_model": name_or_path, "is_copy": loaded_here}
        found |= {"base_revision": snapshot.name} if loaded_here else {}
    has_card = name_or_path is not None and Path(name_or_path, "README.md").is_file()
    source = name_or_path if has_card else found.get("base_model")
    now = datetime.datetime.now(datetime.timezone.utc)
    return {
        **found,
        "inherited": _inherited(source) if source else {},
        "date": now.date().isoformat(),
        "versions": {
            "hf_projclust": __version__,
            "transformers": transformers.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }


def check_base_model(base_model: str | None) -> None:
    """Refuse what cannot be the id of a model on the Hub.

    Args:
        base_model: The id as given.

    Raises:
        ValueError: If it is a path, or not of the form of an id.
    """
    if base_model is None:
        return
    try:
        validate_repo_id(base_model)
    except HFValidationError as error:
        raise ValueError(
            f"base_model={base_model!r}; expected the id of a model on the Hub, such as 'bert-base-uncased', "
            "since a card links to it. Leave it out for a model that is not there."
        ) from error


def _snapshot(name_or_path: str | None) -> Path | None:
    """The folder in the Hub's cache that a model came from; None for folders, also for those that are gone since."""
    if name_or_path is None or Path(name_or_path).exists():
        return None
    try:
        cached = try_to_load_from_cache(name_or_path, "config.json")
    except HFValidationError:
        return None
    return Path(cached).parent if isinstance(cached, str) else None


def _inherited(source: str) -> dict[str, Any]:
    """What the card of a folder or of a model on the Hub says that holds of the compressed model too."""
    try:
        path = Path(source, "README.md")
        card = ModelCard.load(path if path.is_file() else source, ignore_metadata_errors=True)
    except RemoteEntryNotFoundError:
        return {}
    except (OSError, httpx.HTTPError, ValueError, TypeError, YAMLError) as error:
        logger.warning("The card of %r cannot be read, so licence and languages are unknown. (%s)", source, error)
        return {}
    said = {name: getattr(card.data, name, None) for name in INHERITED}
    said["language"] = [code for code in languages(said["language"]) if _LANGUAGE.fullmatch(str(code))]
    if isinstance(said["license"], str):
        said["license"] = said["license"].lower()  # as the Hub spells it
    if said["library_name"] not in _LIBRARIES:
        del said["library_name"]
    return {name: value for name, value in said.items() if value and _is_text(value)}


def languages(said: Any) -> list[Any]:
    """The languages that a card names, as a list; of Norwegian, "no", YAML makes False.

    Args:
        said: One language, a list of them, or None.

    Returns:
        The languages.
    """
    return [
        "no" if code is False else code for code in (said if isinstance(said, list) else [said]) if code is not None
    ]


def _is_text(value: Any) -> bool:
    return all(isinstance(part, str) for part in (value if isinstance(value, list) else [value]))
