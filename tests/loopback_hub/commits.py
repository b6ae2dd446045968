"""Routes of the Hub's API that change what stands in a repository: which files are large, a commit, the history."""

import base64
import json
import re
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any

from loopback_hub.messages import Answer, RefusedError, Request
from loopback_hub.repositories import MODEL, REVISION, find_commit, find_repository
from loopback_hub.storage import Commit, File, Repository

if TYPE_CHECKING:
    from loopback_hub.server import LoopbackHub

LARGEST_REGULAR_BYTES = 10 * 1024**2


def choose_uploads(hub: "LoopbackHub", request: Request, repo_id: str, revision: str) -> Answer:
    """Say of each file that is to come whether it is large, and what stands in its place now."""
    repository = find_repository(hub, request, repo_id, write=not request.asks("create_pr"))
    made = find_commit(repository, revision)
    chosen = []
    for file in request.json["files"]:
        large = _is_large(made, file["path"], file["size"], base64.b64decode(file["sample"]))
        mode = {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
        there = made.files.get(file["path"])
        chosen.append(mode | ({"oid": there.etag} if there and there.is_large == large else {}))
    return Answer(body={"files": chosen})


def _is_large(made: Commit, path: str, size_bytes: int, sample: bytes) -> bool:
    """By .gitattributes, by size, or by a look at the first bytes, since the Hub takes no binary files into git."""
    attributes = made.files.get(".gitattributes")
    lines = attributes.content.decode().splitlines() if attributes else []
    patterns = [line.split()[0] for line in lines if "filter=lfs" in line]
    named = any(fnmatch(path, pattern) or fnmatch(path.rpartition("/")[2], pattern) for pattern in patterns)
    return named or size_bytes > LARGEST_REGULAR_BYTES or b"\0" in sample


def commit(hub: "LoopbackHub", request: Request, repo_id: str, revision: str) -> Answer:
    """Add a commit to a branch, or, as a pull request, beside it."""
    asked = request.asks("create_pr")
    repository = find_repository(hub, request, repo_id, write=not asked)
    if request.user is None:
        raise RefusedError(401, "Invalid username or password.", "RepoNotFound")
    header, *operations = [json.loads(line) for line in request.body.splitlines()]
    header = header["value"]
    parent = find_commit(repository, revision)
    wanted = header.get("parentCommit")
    if asked and wanted:
        parent = find_commit(repository, wanted)
    elif wanted and not parent.id.startswith(wanted):
        raise RefusedError(412, "A commit has happened since. Please refresh and try again.")
    files = dict(parent.files)
    for operation in operations:
        _apply(repository, files, operation["key"], operation["value"])
    number = 1 + sum(reference.startswith("refs/pr/") for reference in repository.references)
    reference = f"refs/pr/{number}" if asked else _reference(repository, revision)
    made = repository.commit(
        reference, parent.id, header["summary"], header.get("description", ""), request.user, files
    )
    about = {"success": True, "commitUrl": f"{hub.url}/{repo_id}/commit/{made.id}", "commitOid": made.id}
    return Answer(body=about | ({"pullRequestUrl": f"{hub.url}/{repo_id}/discussions/{number}"} if asked else {}))


def _reference(repository: Repository, revision: str) -> str:
    for reference in (f"refs/heads/{revision}", revision):
        if reference in repository.references and not reference.startswith("refs/tags/"):
            return reference
    raise RefusedError(400, f"{revision} is no branch that a commit could be added to")


def _apply(repository: Repository, files: dict[str, File], key: str, value: dict[str, Any]) -> None:
    path = value["path"]
    if key == "file":
        files[path] = File(base64.b64decode(value["content"]), is_large=False)
    elif key == "lfsFile":
        content = repository.objects.get(value["oid"])
        if content is None or len(content) != value.get("size", len(content)):
            raise RefusedError(400, f"{path} points to a large file that was not sent")
        files[path] = File(content, is_large=True)
    elif key in {"deletedFile", "deletedFolder"}:
        gone = [
            name
            for name in files
            if name == path or (key == "deletedFolder" and name.startswith(f"{path.rstrip('/')}/"))
        ]
        if not gone:
            raise RefusedError(404, "A file with this name doesn't exist", "EntryNotFound")
        for name in gone:
            del files[name]
    else:
        raise RefusedError(400, f"The loopback Hub does not know the operation {key}")


def list_commits(hub: "LoopbackHub", request: Request, repo_id: str, revision: str) -> Answer:
    repository = find_repository(hub, request, repo_id)
    history = repository.history(find_commit(repository, revision).id)
    return Answer(
        body=[
            {
                "id": made.id,
                "title": made.title,
                "message": made.description,
                "authors": [{"user": made.author}],
                "date": made.date,
            }
            for made in history
        ]
    )


ROUTES = [
    ("POST", re.compile(f"{MODEL}/preupload/{REVISION}"), choose_uploads),
    ("POST", re.compile(f"{MODEL}/commit/{REVISION}"), commit),
    ("GET", re.compile(f"{MODEL}/commits/{REVISION}"), list_commits),
]
