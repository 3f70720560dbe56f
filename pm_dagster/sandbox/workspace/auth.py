"""Who may call: the personal access token, and the client credentials flow that hands out short-lived ones.

Put here: tokens and their check. Keep out: HTTP. Secrets are held as hashes, compared in constant time.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
import time
from collections.abc import Callable

USER_ID = "4711000000000001"
USER_NAME = "sandbox@example.com"


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


class Tokens:
    """The bearer tokens that the workspace accepts."""

    def __init__(self, token: str, client_id: str, client_secret: str, clock: Callable[[], float] = time.time) -> None:
        self.lifetime = 3600
        self._clock = clock
        self._lock = threading.Lock()
        self._personal = _digest(token)
        self._client = _digest(f"{client_id}:{client_secret}")
        self._issued: dict[bytes, float] = {}

    def accepts(self, token: str) -> bool:
        """True for the personal token and for an issued one that has not expired."""
        digest = _digest(token)
        if hmac.compare_digest(digest, self._personal):
            return True
        with self._lock:
            return self._issued.get(digest, 0.0) > self._clock()

    def issue(self, client_id: str, client_secret: str) -> str | None:
        """A fresh token for the right client credentials, else None."""
        if not hmac.compare_digest(_digest(f"{client_id}:{client_secret}"), self._client):
            return None
        token = "sandbox-" + secrets.token_urlsafe(24)
        with self._lock:
            self._issued[_digest(token)] = self._clock() + self.lifetime
        return token

    def revoke_issued(self) -> None:
        """Let every issued token expire now."""
        with self._lock:
            self._issued.clear()
