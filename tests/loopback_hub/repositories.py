"""Routes of the Hub's API that make repositories, branches and tags, and say who may; and the check of model cards."""

import re
from typing import TYPE_CHECKING

from loopback_hub.messages import Answer, RefusedError, Request
from loopback_hub.metadata import check_metadata
from loopback_hub.storage import Commit, Repository

if TYPE_CHECKING:
    from loopback_hub.server import LoopbackHub

REPO_ID = r"(?P<repo_id>[^/]+(?:/[^/]+)?)"
MODEL = f"/api/models/{REPO_ID}"
REVISION = "(?P<revision>[^/]+)"


def find_repository(hub: "LoopbackHub", request: Request, repo_id: str, write: bool = False) -> Repository:
    """The repository, if the user may read it, or write to it.

    The Hub tells those without a token 401 of a repository that is missing or private, and others 404, with the same
    X-Error-Code, from which the client makes the same error; here it is always 404.
    """
    found = hub.repositories.get(repo_id)
    if write and request.user is None:
        raise RefusedError(401, "Invalid username or password.", "RepoNotFound")
    member = request.user is not None and is_member(hub, request.user, repo_id.partition("/")[0])
    if found is None or (found.private and not member):
        raise RefusedError(404, "Repository not found", "RepoNotFound")
    if write and not member:
        raise RefusedError(403, f'You do not have the rights to write to "{repo_id}"')
    return found


def find_commit(repository: Repository, revision: str) -> Commit:
    """The commit that a revision names."""
    found = repository.find(revision or "main")
    if found is None:
        raise RefusedError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    return found


def is_member(hub: "LoopbackHub", user: str, namespace: str) -> bool:
    """Whether a user may write in a namespace."""
    return user == namespace or user in hub.organisations.get(namespace, set())


def who_am_i(hub: "LoopbackHub", request: Request) -> Answer:
    if request.user is None:
        raise RefusedError(401, "Invalid username or password.")
    organisations = [{"type": "org", "name": name} for name in hub.organisations if is_member(hub, request.user, name)]
    token = {"type": "access_token", "accessToken": {"displayName": "tests", "role": "write"}}
    return Answer(body={"type": "user", "name": request.user, "orgs": organisations, "auth": token})


def _named(hub: "LoopbackHub", request: Request) -> tuple[str, str]:
    """The id that the body of a request names, and its namespace, which the user must be in."""
    if request.user is None:
        raise RefusedError(401, "Invalid username or password.")
    if request.json.get("type") not in (None, "model"):
        raise RefusedError(400, "The loopback Hub serves models alone")
    namespace = request.json.get("organization") or request.user
    if not is_member(hub, request.user, namespace):
        raise RefusedError(403, f'You do not have the rights to create a model under the namespace "{namespace}"')
    return f"{namespace}/{request.json['name']}", namespace


def create_repository(hub: "LoopbackHub", request: Request) -> Answer:
    repo_id, _ = _named(hub, request)
    about = {"url": f"{hub.url}/{repo_id}", "name": repo_id}
    if repo_id in hub.repositories:
        return Answer(409, {"error": "You already created this model repo"} | about)
    private = request.json.get("visibility") == "private" or bool(request.json.get("private"))
    hub.repositories[repo_id] = Repository(repo_id, private)
    return Answer(body=about)


def delete_repository(hub: "LoopbackHub", request: Request) -> Answer:
    repo_id, _ = _named(hub, request)
    if hub.repositories.pop(repo_id, None) is None:
        raise RefusedError(404, "Repository not found", "RepoNotFound")
    return Answer()


def validate_card(hub: "LoopbackHub", request: Request) -> Answer:
    """Judge a model card; its author need not be known."""
    errors, warnings = check_metadata(request.json["content"])
    status = 400 if errors else 200
    if request.headers.get("accept") == "text/plain":
        return Answer(status, "\n".join(errors + warnings))
    return Answer(status, {"errors": [{"message": e} for e in errors], "warnings": [{"message": w} for w in warnings]})


def list_references(hub: "LoopbackHub", request: Request, repo_id: str) -> Answer:
    repository = find_repository(hub, request, repo_id)
    lists: dict[str, list[dict[str, str]]] = {"converts": []}
    for key, prefix in (("branches", "refs/heads/"), ("tags", "refs/tags/"), ("pullRequests", "refs/pr/")):
        found = {ref: id_ for ref, id_ in repository.references.items() if ref.startswith(prefix)}
        lists[key] = [{"name": r.removeprefix(prefix), "ref": r, "targetCommit": id_} for r, id_ in found.items()]
    return Answer(body=lists)


def create_branch(hub: "LoopbackHub", request: Request, repo_id: str, name: str) -> Answer:
    start = (request.json or {}).get("startingPoint") or "main"
    return _create_reference(find_repository(hub, request, repo_id, write=True), "refs/heads/", name, start)


def create_tag(hub: "LoopbackHub", request: Request, repo_id: str, revision: str) -> Answer:
    repository = find_repository(hub, request, repo_id, write=True)
    return _create_reference(repository, "refs/tags/", request.json["tag"], revision)


def _create_reference(repository: Repository, prefix: str, name: str, revision: str) -> Answer:
    if name.startswith("refs/"):
        raise RefusedError(400, f"Invalid reference for a branch: {name}")
    if prefix + name in repository.references:
        raise RefusedError(409, f"Reference already exists: {prefix}{name}")
    repository.references[prefix + name] = find_commit(repository, revision).id
    return Answer()


def delete_branch(hub: "LoopbackHub", request: Request, repo_id: str, name: str) -> Answer:
    repository = find_repository(hub, request, repo_id, write=True)
    if name == "main":
        raise RefusedError(403, "Cannot delete the default branch")
    if repository.references.pop(f"refs/heads/{name}", None) is None:
        raise RefusedError(404, f"Invalid rev id: {name}", "RevisionNotFound")
    return Answer()


def refuse_other_kind(hub: "LoopbackHub", request: Request) -> Answer:
    """There are no data sets and no Spaces."""
    raise RefusedError(404, "Repository not found", "RepoNotFound")


ROUTES = [
    (method, re.compile(pattern), route)
    for method, pattern, route in [
        ("GET", "/api/whoami-v2", who_am_i),
        ("POST", "/api/validate-yaml", validate_card),
        ("POST", "/api/repos/create", create_repository),
        ("DELETE", "/api/repos/delete", delete_repository),
        ("GET", f"{MODEL}/refs", list_references),
        ("POST", f"{MODEL}/branch/(?P<name>[^/]+)", create_branch),
        ("DELETE", f"{MODEL}/branch/(?P<name>[^/]+)", delete_branch),
        ("POST", f"{MODEL}/tag/{REVISION}", create_tag),
        ("GET", "/(?:api/)?(?:datasets|spaces)/.+", refuse_other_kind),
    ]
]
