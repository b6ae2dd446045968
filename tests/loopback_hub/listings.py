"""Routes of the Hub's API that tell what stands in a repository: its model card, its files and folders."""

import re
from typing import TYPE_CHECKING, Any

import yaml

from loopback_hub.messages import Answer, RefusedError, Request
from loopback_hub.metadata import read_metadata
from loopback_hub.repositories import MODEL, REVISION, find_commit, find_repository
from loopback_hub.storage import Commit, File

if TYPE_CHECKING:
    from loopback_hub.server import LoopbackHub


def describe(hub: "LoopbackHub", request: Request, repo_id: str, revision: str = "main") -> Answer:
    repository = find_repository(hub, request, repo_id)
    made = find_commit(repository, revision)
    card = _card(made)
    about = {
        "id": repo_id,
        "modelId": repo_id,
        "author": repo_id.partition("/")[0],
        "sha": made.id,
        "lastModified": made.date,
        "private": repository.private,
        "gated": False,
        "disabled": False,
        "tags": _tags(card, made),
        "pipeline_tag": card.get("pipeline_tag"),
        "library_name": card.get("library_name"),
        "cardData": card,
        "model-index": card.get("model-index"),
        "siblings": [_sibling(path, file, request.asks("blobs")) for path, file in sorted(made.files.items())],
    }
    wanted = request.query.get("expand")
    return Answer(body={key: value for key, value in about.items() if not wanted or key in {"id", *wanted}})


def _card(made: Commit) -> dict[str, Any]:
    try:
        card = read_metadata(made.files["README.md"].content.decode()) if "README.md" in made.files else None
    except (yaml.YAMLError, UnicodeDecodeError):
        return {}
    return card if isinstance(card, dict) else {}


def _tags(card: dict[str, Any], made: Commit) -> list[str]:
    tags = [card["library_name"]] if "library_name" in card else []
    tags += ["safetensors"] if any(path.endswith(".safetensors") for path in made.files) else []
    for key, prefix in (
        ("pipeline_tag", ""),
        ("tags", ""),
        ("language", ""),
        ("datasets", "dataset:"),
        ("base_model", "base_model:"),
        ("license", "license:"),
    ):
        values = card.get(key) or []
        tags += [f"{prefix}{value}" for value in (values if isinstance(values, list) else [values])]
    return list(dict.fromkeys(tags))


def _sibling(path: str, file: File, with_sizes: bool) -> dict[str, Any]:
    about: dict[str, Any] = {"rfilename": path}
    if with_sizes:
        about |= {"size": len(file.content), "blobId": file.blob_id}
        if file.is_large:
            about["lfs"] = {"size": len(file.content), "sha256": file.sha256, "pointerSize": len(file.pointer)}
    return about


def list_tree(hub: "LoopbackHub", request: Request, repo_id: str, revision: str, folder: str = "") -> Answer:
    made = find_commit(find_repository(hub, request, repo_id), revision)
    prefix = f"{folder}/" if folder else ""
    entries = [entry for path, entry in sorted(_entries(made).items()) if path.startswith(prefix)]
    if folder and not entries:
        raise RefusedError(404, f"{folder} does not exist on {revision}", "EntryNotFound", X_Repo_Commit=made.id)
    shown = [entry for entry in entries if request.asks("recursive") or "/" not in entry["path"][len(prefix) :]]
    return Answer(body=shown)


def list_paths(hub: "LoopbackHub", request: Request, repo_id: str, revision: str) -> Answer:
    entries = _entries(find_commit(find_repository(hub, request, repo_id), revision))
    return Answer(body=[entries[path] for path in request.form.get("paths", []) if path in entries])


def _entries(made: Commit) -> dict[str, dict[str, Any]]:
    """The files and folders of a commit, as the Hub lists them."""
    entries: dict[str, dict[str, Any]] = {}
    for path, file in made.files.items():
        folders = path.split("/")[:-1]
        for depth in range(1, len(folders) + 1):
            folder = "/".join(folders[:depth])
            entries[folder] = {"type": "directory", "oid": made.id, "size": 0, "path": folder}
        entries[path] = {"type": "file", "oid": file.blob_id, "size": len(file.content), "path": path}
        if file.is_large:
            lfs = {"oid": file.sha256, "size": len(file.content), "pointerSize": len(file.pointer)}
            entries[path]["lfs"] = lfs
    return entries


ROUTES = [
    ("GET", re.compile(MODEL), describe),
    ("GET", re.compile(f"{MODEL}/revision/{REVISION}"), describe),
    ("GET", re.compile(f"{MODEL}/tree/{REVISION}(?:/(?P<folder>.+))?"), list_tree),
    ("POST", re.compile(f"{MODEL}/paths-info/{REVISION}"), list_paths),
]
