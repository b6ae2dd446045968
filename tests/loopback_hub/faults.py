"""What can go wrong on the way to the loopback Hub, on demand: an error, a connection that breaks, a slow answer."""

import re
from dataclasses import dataclass


@dataclass
class Fault:
    """Something that befalls the next requests of a kind.

    Args:
        method: The method of the requests, such as "PUT".
        path: A regular expression that is searched for in their path, which is as sent: quoted, without the query.
        status: Answer with this status and do nothing.
        drop: Break the connection: half way through the body that comes in, so that nothing is done, or, where none
            comes in, half way through the one that goes out (to HEAD, before anything does).
        delay_seconds: Wait before answering.
        times: How many requests; then the Hub behaves.
    """

    method: str
    path: str
    status: int | None = None
    drop: bool = False
    delay_seconds: float = 0.0
    times: int = 1

    def takes(self, method: str, path: str) -> bool:
        """Whether the fault befalls this request; if so, it counts."""
        if self.times < 1 or method != self.method or not re.search(self.path, path):
            return False
        self.times -= 1
        return True
