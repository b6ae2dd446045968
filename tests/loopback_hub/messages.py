"""What goes through the loopback Hub: a request as the routes see it, an answer, and a refusal in the Hub's form.

The Hub says why it refuses in two headers, which its client turns into its own errors: X-Error-Code (RepoNotFound,
RevisionNotFound, EntryNotFound) and X-Error-Message. Reading and writing the bytes of HTTP is in ``server``.
"""

import json
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs


@dataclass(frozen=True)
class Request:
    """One request, its body read."""

    method: str
    path: str  # as sent: still quoted, without the query
    query: dict[str, list[str]]
    headers: dict[str, str]  # names in lower case
    body: bytes
    user: str | None  # whose token came with it

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def form(self) -> dict[str, list[str]]:
        return parse_qs(self.body.decode())

    def asks(self, name: str) -> bool:
        """Whether a switch in the query is on."""
        return self.query.get(name, ["0"])[0].lower() in {"1", "true"}


@dataclass(frozen=True)
class Answer:
    """One answer; a body that is not bytes is sent as JSON."""

    status: int = 200
    body: Any = b""
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def payload(self) -> tuple[bytes, str]:
        """The body's bytes and their content type."""
        if isinstance(self.body, bytes):
            return self.body, "application/octet-stream"
        if isinstance(self.body, str):
            return self.body.encode(), "text/plain; charset=utf-8"
        return json.dumps(self.body, default=str).encode(), "application/json; charset=utf-8"


class RefusedError(Exception):
    """Raised by a route to answer with an error."""

    def __init__(self, status: int, message: str, code: str | None = None, **headers: str) -> None:
        """Say why, under which of the Hub's error codes, and in which further headers (``_`` stands for ``-``)."""
        super().__init__(message)
        stated = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        stated |= {name.replace("_", "-"): value for name, value in headers.items()}
        self.answer = Answer(status, {"error": message}, stated)
