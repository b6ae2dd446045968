"""The reading and writing of HTTP for the loopback Hub.

A request is read, counted, given to the fault that waits for it, if any, and answered; what it means is not asked here.
Bodies come with their length or in chunks and go out with their length; connections are kept open.
"""

import contextlib
import socket
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

from loopback_hub.messages import Answer, RefusedError, Request

if TYPE_CHECKING:
    from loopback_hub.server import LoopbackHub


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body go in two writes, between which it would wait 40 ms
    server: "Server"

    def setup(self) -> None:
        super().setup()
        self.server.connections.add(self.connection)

    def finish(self) -> None:
        self.server.connections.discard(self.connection)
        with contextlib.suppress(ConnectionError):
            super().finish()

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):
            super().handle()

    def log_message(self, *_: Any) -> None:
        """Nothing: what was asked is in ``hub.requests``."""

    def serve(self) -> None:
        url = urlsplit(self.path if self.command != "CONNECT" else f"//{self.path}")
        path = url.path or self.path
        _, bearer, token = self.headers.get("Authorization", "").partition("Bearer ")
        hub = self.server.hub
        fault = hub.note(self.command, path, token if bearer else None)
        if fault is not None:
            time.sleep(fault.delay_seconds)
        length = int(self.headers.get("Content-Length", 0))
        breaks = fault is not None and fault.drop
        if breaks and length:
            self.rfile.read(length // 2)
            self._hang_up()
            return
        body = self._read_chunks() if self.headers.get("Transfer-Encoding") == "chunked" else self.rfile.read(length)
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, path, parse_qs(url.query), headers, body, user=None)
        if fault is not None and fault.status is not None:
            self._send(RefusedError(fault.status, "This is a fault of the loopback Hub").answer)
        else:
            self._send(hub.answer(request, token if bearer else None), breaks)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_CONNECT = serve  # noqa: N815

    def _read_chunks(self) -> bytes:
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _send(self, answer: Answer, breaks: bool = False) -> None:
        payload, content_type = answer.payload
        if breaks and self.command == "HEAD":
            self._hang_up()
            return
        self.send_response(answer.status)
        for name, value in (
            {"Content-Type": content_type, "Content-Length": str(len(payload))} | answer.headers
        ).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(payload[: len(payload) // 2] if breaks else payload)
        if breaks:
            self._hang_up()

    def _hang_up(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)


class Server(ThreadingHTTPServer):
    """Listens on 127.0.0.1 for a Hub, with a thread for each connection."""

    daemon_threads = True

    def __init__(self, hub: "LoopbackHub", port: int) -> None:
        """Take the port, or any if it is 0."""
        self.hub = hub
        self.connections: set[socket.socket] = set()
        super().__init__(("127.0.0.1", port), _Handler)

    def hang_up(self) -> None:
        """Break the connections that clients keep open."""
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
