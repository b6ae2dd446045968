"""Routes that carry the bytes of files: large ones coming in, and any going out.

Large files go by another address, ``hub.storage_url``, which wants no token: the address itself is the leave, as the
signed addresses of the Hub's storage are. They come in whole; an upload in parts is not offered.
"""

import hashlib
import re
import secrets
from typing import TYPE_CHECKING
from urllib.parse import quote

from loopback_hub.messages import Answer, RefusedError, Request
from loopback_hub.repositories import REPO_ID, find_commit, find_repository

if TYPE_CHECKING:
    from loopback_hub.server import LoopbackHub


def offer_uploads(hub: "LoopbackHub", request: Request, repo_id: str) -> Answer:
    """Give each large file that is not there yet an address to be sent to."""
    # without a branch, the files are for a pull request, which any user may open
    repository = find_repository(hub, request, repo_id, write="ref" in request.json)
    if request.user is None:
        raise RefusedError(401, "Invalid username or password.", "RepoNotFound")
    objects = []
    for wanted in request.json["objects"]:
        offer = {"oid": wanted["oid"], "size": wanted["size"]}
        if wanted["oid"] not in repository.objects:
            secret = secrets.token_hex(8)
            hub.grants[secret] = (repository, wanted["oid"], wanted["size"])
            offer["actions"] = {
                "upload": {"href": f"{hub.storage_url}/upload/{secret}"},
                "verify": {"href": f"{hub.url}/{repo_id}.git/info/lfs/objects/verify"},
            }
        objects.append(offer)
    return Answer(body={"transfer": "basic", "objects": objects})


def take_upload(hub: "LoopbackHub", request: Request, secret: str) -> Answer:
    if secret not in hub.grants:
        raise RefusedError(403, "This address is not signed")
    repository, sha256, size_bytes = hub.grants[secret]
    if len(request.body) != size_bytes or hashlib.sha256(request.body).hexdigest() != sha256:
        raise RefusedError(400, f"{len(request.body)} bytes came that are not the {size_bytes} of {sha256}")
    repository.objects[sha256] = request.body
    return Answer()


def verify_upload(hub: "LoopbackHub", request: Request, repo_id: str) -> Answer:
    repository = find_repository(hub, request, repo_id)
    content = repository.objects.get(request.json["oid"])
    if content is None or len(content) != request.json["size"]:
        raise RefusedError(404, f"{request.json['oid']} was not sent")
    return Answer()


def give_file(hub: "LoopbackHub", request: Request, repo_id: str, revision: str, path: str) -> Answer:
    """A file of git itself, or for a large one, where it is."""
    made = find_commit(find_repository(hub, request, repo_id), revision)
    file = made.files.get(path)
    if file is None:
        raise RefusedError(404, "Entry not found", "EntryNotFound", X_Repo_Commit=made.id)
    headers = {"X-Repo-Commit": made.id, "ETag": f'"{file.etag}"', "Accept-Ranges": "bytes"}
    if not file.is_large:
        return _part(file.content, request, headers)
    headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(len(file.content))}
    location = f"{hub.storage_url}/download/{quote(repo_id, safe='')}/{file.sha256}"
    return Answer(302, "Found. Redirecting.", headers | {"Location": location})


def give_large_file(hub: "LoopbackHub", request: Request, repo_id: str, sha256: str) -> Answer:
    repository = hub.repositories.get(repo_id)
    if repository is None or sha256 not in repository.objects:
        raise RefusedError(403, "This address is not signed")
    return _part(repository.objects[sha256], request, {"ETag": f'"{sha256}"', "Accept-Ranges": "bytes"})


def _part(content: bytes, request: Request, headers: dict[str, str]) -> Answer:
    """The content, or the range of it that was asked for."""
    asked = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("range", ""))
    if not asked:
        return Answer(200, content, headers)
    first, last = asked.groups()
    start = int(first) if first else max(len(content) - int(last), 0)
    stop = min(int(last) + 1, len(content)) if first and last else len(content)
    if start >= stop:
        return Answer(416, b"", headers | {"Content-Range": f"bytes */{len(content)}"})
    return Answer(206, content[start:stop], headers | {"Content-Range": f"bytes {start}-{stop - 1}/{len(content)}"})


ROUTES = [
    ("POST", re.compile(rf"/{REPO_ID}\.git/info/lfs/objects/batch"), offer_uploads),
    ("POST", re.compile(rf"/{REPO_ID}\.git/info/lfs/objects/verify"), verify_upload),
    ("PUT", re.compile("/upload/(?P<secret>[^/]+)"), take_upload),
    ("GET", re.compile("/download/(?P<repo_id>[^/]+)/(?P<sha256>[^/]+)"), give_large_file),
    ("GET", re.compile(f"/{REPO_ID}/resolve/(?P<revision>[^/]+)/(?P<path>.+)"), give_file),
]
