"""The loopback Hub itself: what it holds, its face for tests, and who answers which request.

What a request means is in ``repositories``, ``listings``, ``commits`` and ``transfers``, and how it comes in and goes
out in ``connections``. One request at a time is acted on.
"""

from dataclasses import replace
from threading import RLock, Thread
from urllib.parse import unquote

from loopback_hub import commits, listings, repositories, transfers
from loopback_hub.connections import Server
from loopback_hub.faults import Fault
from loopback_hub.messages import Answer, RefusedError, Request
from loopback_hub.storage import Commit, Repository

ROUTES = [*repositories.ROUTES, *listings.ROUTES, *commits.ROUTES, *transfers.ROUTES]


class LoopbackHub:
    """A Hub on 127.0.0.1, empty at first.

    Attributes:
        users: The name of each token's user.
        organisations: The members of each organisation.
        faults: What goes wrong next; the first that fits a request befalls it.
        requests: Method and path of every request, the path as sent: quoted, without the query.
        authorizations: The token that each of these requests sent, or None.
        repositories: The repositories, by their ids.
        grants: The uploads that may come: repository, sha256 and size, by the secret in their address.
    """

    def __init__(self) -> None:
        """Begin empty; ``start`` listens."""
        self.clear()
        self._lock = RLock()
        self._server: Server | None = None
        self.port = 0

    def clear(self) -> None:
        """Forget everything: repositories, users, faults and requests."""
        self.users: dict[str, str] = {}
        self.organisations: dict[str, set[str]] = {}
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str]] = []
        self.authorizations: list[str | None] = []
        self.repositories: dict[str, Repository] = {}
        self.grants: dict[str, tuple[Repository, str, int]] = {}

    def start(self) -> "LoopbackHub":
        """Listen, on the port of last time if there was one; nothing happens if it does already."""
        if self._server is not None:
            return self
        self._server = Server(self, self.port)
        self.port = self._server.server_port
        Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def stop(self) -> None:
        """Listen no more and break every connection; what is stored stays."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server.hang_up()
            self._server = None

    def __enter__(self) -> "LoopbackHub":
        """Start, for as long as the block runs."""
        return self.start()

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def storage_url(self) -> str:
        """Where large files are: another host to a client, to which it must not send its token."""
        return f"http://localhost:{self.port}"

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """The files at a revision, large ones with their content."""
        made = self.repositories[repo_id].find(revision)
        if made is None:
            raise KeyError(f"{repo_id} has no revision {revision}")
        return {path: file.content for path, file in made.files.items()}

    def commits(self, repo_id: str, revision: str = "main") -> list[Commit]:
        """The commits that lead to a revision, the newest first; each has an ``id`` and a ``title``."""
        return self.repositories[repo_id].history(revision)

    def note(self, method: str, path: str, token: str | None) -> Fault | None:
        """Count a request, and give the fault that befalls it."""
        with self._lock:
            self.requests.append((method, path))
            self.authorizations.append(token)
            return next((fault for fault in self.faults if fault.takes(method, path)), None)

    def answer(self, request: Request, token: str | None) -> Answer:
        """Act on a request."""
        with self._lock:
            try:
                if token is not None:
                    if token not in self.users:
                        raise RefusedError(401, "Invalid credentials in Authorization header")
                    request = replace(request, user=self.users[token])
                method = "GET" if request.method == "HEAD" else request.method
                for wanted, pattern, route in ROUTES:
                    match = pattern.fullmatch(request.path)
                    if match and wanted == method:
                        parts = {name: unquote(part or "") for name, part in match.groupdict().items()}
                        return route(self, request, **parts)
                raise RefusedError(404, f"The loopback Hub does not serve {request.method} {request.path}")
            except RefusedError as refusal:
                return refusal.answer
