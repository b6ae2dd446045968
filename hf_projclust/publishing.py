"""A folder of a compressed model to the Hub: checked first, sent in one commit, and left as it is.

The work is huggingface_hub's. Here is decided which files go along, and what an error means to the user.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import httpx, validate_repo_id
from transformers.utils import logging

from .card_metadata import UNKNOWN
from .cards import PLOT_NAME, render_card
from .configuration_projclust import CODE_FILES
from .evaluation.plots import plot_record
from .folders import companions
from .sizes import read_config

logger = logging.get_logger(__name__)

_WEIGHTS = ("model*.safetensors", "model*.safetensors.index.json")
_MODEL_FILES = ("config.json", "generation_config.json", *_WEIGHTS, *CODE_FILES)
_OTHER_WEIGHTS = (*_WEIGHTS, "pytorch_model*.bin", "pytorch_model*.bin.index.json")


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    token: str | None = None,
    commit_message: str | None = None,
) -> CommitInfo:
    """Push the folder of a compressed model to the Hub, in one commit.

    Sent are the files that ``files_to_push`` gives, and the card with its plot, written for this repository. Weights at
    the top of the repository that the folder does not have, which would be loaded in place of its own, are deleted in
    the same commit. The folder is not changed. A push that failed can be repeated: what was uploaded is not sent again.

    Args:
        folder: Folder of a compressed model.
        repo_id: Repository on the Hub, such as "org/distilbert-pc60"; it is made if it is not there.
        private: Whether a new repository is private; by default as the owner has set.
        revision: Branch to push to, made if it is not there, or "refs/pr/N" for a pull request that is there; by
            default "main".
        create_pr: Whether to open a pull request in place of a commit to the branch.
        token: Token with the right to write; by default that of ``hf auth login`` or HF_TOKEN.
        commit_message: Title of the commit.

    Returns:
        The commit, with ``commit_url`` and, for a pull request, ``pr_url``.

    Raises:
        FileNotFoundError: If there is no such folder, or no checkpoint in it.
        ValueError: If the folder holds no compressed model, or a path of this machine is in what would be published, or
            the repository's id or the card's metadata are wrong, or the repository is not as private as asked, or holds
            an adapter.
        PermissionError: If there is no token, or the Hub refuses it.
        ConnectionError: If the Hub cannot be reached, or fails.
    """
    folder = Path(folder)
    read_config(folder)
    _check_names(repo_id, revision)
    api = HfApi(token=_checked_token(token))
    with _errors_explained(folder, repo_id):
        if "/" not in repo_id:
            repo_id = f"{api.whoami()['name']}/{repo_id}"
    card = render_card(folder, repo_id=repo_id)
    if card.data.get("license_name") == UNKNOWN:
        logger.warning(
            "The card says that the licence is unknown. If you know it, state it at the top of %s and push again.",
            folder / "README.md",
        )
    with tempfile.TemporaryDirectory() as drawn:
        additions = _additions(folder, card, Path(drawn))
        _check_paths(additions)
        with _errors_explained(folder, repo_id):
            api.create_repo(repo_id, private=private, exist_ok=True)
            if private and not api.model_info(repo_id).private:
                raise ValueError(
                    f"repository {repo_id!r} is public; expected a private one. Make it private in its settings on the "
                    "Hub, or push to another."
                )
            if revision is not None and not revision.startswith("refs/pr/"):
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            deletions = _deletions(api.list_repo_files(repo_id, revision=revision), additions, repo_id)
            with _metadata_errors_explained(folder):
                return api.create_commit(
                    repo_id,
                    [*additions, *deletions],
                    commit_message=commit_message or "Upload a model with a compressed vocabulary table",
                    revision=revision,
                    create_pr=create_pr,
                )


def files_to_push(folder: Path) -> list[Path]:
    """Files of a model's folder that belong on the Hub, beside the card and its plot.

    These are its configuration and weights, the code that was saved with it, and what goes along with any model: the
    text and JSON files at the top, among which are those of all kinds of tokenizers, and the modules of a
    sentence-transformers model. Training states, checkpoints, adapters, hidden files and other folders are not.

    Args:
        folder: Folder of a compressed model.

    Returns:
        Their paths.

    Raises:
        FileNotFoundError: If a link leads nowhere.
    """
    own = [path for path in folder.iterdir() if _matches(path.name, _MODEL_FILES)]
    along = [path for found in companions(folder) for path in (found.rglob("[!.]*") if found.is_dir() else [found])]
    paths = sorted({path for path in (*own, *along) if not path.is_dir()})
    if broken := [str(path) for path in folder.iterdir() if path.is_symlink() and not path.exists()]:
        raise FileNotFoundError(
            f"{', '.join(broken)} in {str(folder)!r} leads nowhere; expected a file. Put it back, or delete the link."
        )
    return paths


def _additions(folder: Path, card: ModelCard, drawn: Path) -> list[CommitOperationAdd]:
    plot_record(read_config(folder), drawn / PLOT_NAME)
    contents: dict[str, Any] = {path.relative_to(folder).as_posix(): path for path in files_to_push(folder)}
    contents |= {"README.md": str(card).encode(), PLOT_NAME: drawn / PLOT_NAME}
    return [CommitOperationAdd(name, content) for name, content in sorted(contents.items())]


def _deletions(there: list[str], additions: list[CommitOperationAdd], repo_id: str) -> list[CommitOperationDelete]:
    """Weights at the top of a repository that would be loaded in place of those that are added."""
    if "adapter_config.json" in there:
        raise ValueError(
            f"repository {repo_id!r} holds a PEFT adapter; expected one for a whole model, since Transformers would "
            "load the adapter on top of it. Push to another."
        )
    names = {addition.path_in_repo for addition in additions}
    stale = [name for name in there if "/" not in name and _matches(name, _OTHER_WEIGHTS) and name not in names]
    return [CommitOperationDelete(path_in_repo=name) for name in stale]


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def _check_names(repo_id: str, revision: str | None) -> None:
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(
            f"repository {repo_id!r} is not the id of one on the Hub ({error}); expected OWNER/NAME, such as "
            "'org/distilbert-pc60'. Check the spelling."
        ) from error
    if revision is not None and re.fullmatch("[0-9a-f]{40}", revision):
        raise ValueError(
            f"revision {revision!r} is a commit; expected the name of a branch. Name one, or leave it out."
        )


def _checked_token(given: str | None) -> str:
    """The token to push with. No message holds it, nor part of it."""
    token = get_token() if given is None else given.strip()
    if not token:
        raise PermissionError(
            "there is no token for the Hub; expected one with the right to write. Run `hf auth login`, or set "
            "HF_TOKEN, with a token from https://huggingface.co/settings/tokens."
        )
    if not (token.isascii() and token.isprintable() and " " not in token):
        raise PermissionError(
            f"the token has characters that no token has (it is {len(token)} characters long); expected one line of "
            "letters, digits and underscores. Copy it again from https://huggingface.co/settings/tokens."
        )
    return token


def _check_paths(additions: list[CommitOperationAdd]) -> None:
    """Refuse to publish the home folder of a person, which a card or a configuration may name."""
    home = f"{Path.home()}/"
    for addition in additions:
        if fnmatch(addition.path_in_repo, "*config*.json") or addition.path_in_repo == "README.md":
            with addition.as_file() as file:
                named = home.encode() in file.read()
            if named and home != "//":
                raise ValueError(
                    f"{addition.path_in_repo} names a path in {home!r}; expected no path of this machine in what is "
                    "published. Put the id of a model on the Hub in its place, or delete it."
                )


@contextlib.contextmanager
def _metadata_errors_explained(folder: Path) -> Iterator[None]:
    """Say where to mend the metadata of a card that the Hub refuses, which the client asks before it sends anything."""
    try:
        yield
    except ValueError as error:
        if "metadata" not in str(error):
            raise
        reason, readme = " ".join(str(error).split()), str(folder / "README.md")
        raise ValueError(
            f"the Hub refuses the card ({reason}); expected metadata as described at "
            f"https://huggingface.co/docs/hub/model-cards. Mend the lines at the top of {readme!r}, then run the same "
            "command again."
        ) from error


@contextlib.contextmanager
def _errors_explained(folder: Path, repo_id: str) -> Iterator[None]:
    """Say what the errors of a push mean, and how to go on."""
    try:
        yield
    except (HfHubHTTPError, OSError, RuntimeError, httpx.HTTPError) as error:
        cause: Any = (isinstance(error, RuntimeError) and error.__cause__) or error  # an upload is wrapped once more
        status = getattr(getattr(cause, "response", None), "status_code", None)
        reason = " ".join(str(cause).split()) or type(cause).__name__
        if status in (401, 403):
            raise PermissionError(
                f"the Hub refuses the token for {repo_id!r} ({reason}); expected one with the right to write there. "
                "Check the owner's name and the token's rights, then run the same command again."
            ) from error
        if status is not None and 400 <= status < 500 and status not in (408, 429):
            raise ValueError(
                f"the Hub refuses the push to {repo_id!r} ({reason}); expected a repository, a branch and files that "
                "it takes. Mend what it names, then run the same command again."
            ) from error
        raise ConnectionError(
            f"the push of {str(folder)!r} to {repo_id!r} did not end ({reason}); expected a network and a Hub that "
            "answers. The folder is as it was: run the same command again later. What was uploaded is not sent again."
        ) from error
