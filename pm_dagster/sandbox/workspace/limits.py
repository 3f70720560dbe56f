"""Requests per second and endpoint, as token buckets that answer 429. Off until a rate is set."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

DOCUMENTED: Mapping[str, float] = {
    "create": 20, "get": 20, "list": 20, "run-now": 20, "update": 10, "reset": 20, "delete": 10,
    "runs/submit": 35, "runs/get": 100, "runs/list": 30, "runs/get-output": 20, "runs/cancel": 10,
    "runs/cancel-all": 5, "runs/delete": 20, "runs/repair": 5, "runs/export": 20,
}  # fmt: skip


class Limits:
    """A bucket of one second's worth of requests for each endpoint that has a rate.

    ``retry_after`` goes into the header of the same name as it is; None sends no header.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.retry_after: int | str | None = None
        self._clock = clock
        self._lock = threading.Lock()
        self._rates: dict[str, float] = {}
        self._levels: dict[str, tuple[float, float]] = {}

    @property
    def rates(self) -> dict[str, float]:
        """Requests per second by endpoint."""
        with self._lock:
            return dict(self._rates)

    def set(self, rates: Mapping[str, float], retry_after: int | str | None = None) -> None:
        """Replace all rates; the buckets start full."""
        if any(rate <= 0 for rate in rates.values()):
            raise ValueError("a rate is more than 0")
        with self._lock:
            self._rates = {endpoint: float(rate) for endpoint, rate in rates.items()}
            self._levels = {}
            self.retry_after = retry_after

    def use_documented(self, retry_after: int | str | None = None) -> None:
        """Set the figures of the documentation."""
        self.set(DOCUMENTED, retry_after)

    def clear(self) -> None:
        """Limit nothing."""
        self.set({})

    def allow(self, endpoint: str) -> bool:
        """Take one request out of the bucket, if there is one."""
        with self._lock:
            rate = self._rates.get(endpoint)
            if rate is None:
                return True
            now = self._clock()
            size = max(rate, 1.0)
            level, since = self._levels.get(endpoint, (size, now))
            level = min(size, level + (now - since) * rate)
            allowed = level >= 1.0
            self._levels[endpoint] = (level - 1.0 if allowed else level, now)
            return allowed
