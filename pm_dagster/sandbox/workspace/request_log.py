"""What was asked of the workspace, in order of arrival, so that a test can say "exactly one took effect".

No secret is kept: of a token only a hash, of a secret's or a file's body only its size.
"""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Entry:
    """One request. ``status`` 0: the connection was cut; ``effect``: it changed something."""

    number: int
    time: float
    seconds: float
    method: str
    path: str
    endpoint: str
    body: str
    token_hash: str
    connection: str
    status: int
    effect: bool
    fault: str


# Bodies that hold client secrets, secrets' values, or files.
_UNTOLD = ("oidc/", "secrets/", "workspace/import", "workspace-files/")


def told(endpoint: str, raw: bytes) -> str:
    """A body as the log shows it."""
    if endpoint.startswith(_UNTOLD):
        return f"<{len(raw)} bytes>"
    return raw.decode("utf-8", "replace")


def hash_of(token: str) -> str:
    """Enough of a hash to tell two tokens apart."""
    return hashlib.sha256(token.encode()).hexdigest()[:12] if token else ""


class RequestLog:
    """The last requests; the oldest drop out beyond ``size``."""

    def __init__(self, size: int = 50_000) -> None:
        self._lock = threading.Lock()
        self._entries: deque[Entry] = deque(maxlen=size)
        self._number = 0

    def add(self, **values: Any) -> None:  # noqa: ANN401  # the fields of Entry
        """Append a request."""
        with self._lock:
            self._number += 1
            self._entries.append(Entry(number=self._number, **values))

    def entries(self, endpoint: str | None = None, *, effect: bool | None = None, after: int = 0) -> list[Entry]:
        """The requests with a number above ``after``, narrowed down to an endpoint and to (in)effective ones."""
        with self._lock:
            found = list(self._entries)
        return [
            each
            for each in found
            if each.number > after
            and (endpoint is None or each.endpoint == endpoint)
            and (effect is None or each.effect == effect)
        ]

    def count(self, endpoint: str | None = None, *, effect: bool | None = None) -> int:
        """How many requests ``entries`` would give."""
        return len(self.entries(endpoint, effect=effect))

    def clear(self) -> None:
        """Forget all requests; numbers go on."""
        with self._lock:
            self._entries.clear()


def to_json(entry: Entry) -> dict[str, Any]:
    """The entry as JSON data."""
    return asdict(entry)
