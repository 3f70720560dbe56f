"""Paces each endpoint of the Jobs API: uses its share fully and never exceeds it.

The limiter adapts: a 429 halves the rate of its endpoint, and time wins it back. It neither sleeps nor calls: the
worker asks how long to wait.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pm_dagster.dispatch.model import Call

#: Calls that were due while nobody asked may be caught up to this many seconds of the rate. With the default rates, a
#: tenth under the limits, no second ever holds more than the workspace allows.
_CATCH_UP_SECONDS = 0.1
_SLOW_DOWN = 0.5
_SLOWEST_SHARE = 0.05
#: Share of the configured rate that is won back each second without a 429.
_RECOVERY_PER_SECOND = 0.05
#: Seconds of pause after a 429 that asks for none.
_UNASKED_PAUSE = 1.0


@dataclass
class _Pace:
    rate: float
    share: float = 1.0
    next_at: float = 0.0
    paused_until: float = 0.0
    share_at: float = 0.0


class RateLimiter:
    """One pace per endpoint, slowed down by 429 and recovering with time.

    ``rates`` are calls per second, 0 or absent = no pacing; ``clock`` is monotonic seconds. Not thread-safe: it belongs
    to the dispatch's one deciding thread.
    """

    def __init__(self, rates: Mapping[Call, float], clock: Callable[[], float]) -> None:
        self._clock = clock
        self._paces = {call: _Pace(rate=rates.get(call, 0.0), share_at=clock()) for call in Call}
        self.throttled = 0

    def delay(self, call: Call) -> float:
        """Seconds until the next call of this endpoint may start; 0 when it may start now."""
        pace = self._paces[call]
        return max(0.0, pace.paused_until - self._clock(), (pace.next_at - self._clock()) if pace.rate else 0.0)

    def take(self, call: Call) -> None:
        """Note that a call starts now."""
        pace = self._paces[call]
        if not pace.rate:
            return
        now = self._clock()
        pace.share = min(1.0, pace.share + (now - pace.share_at) * _RECOVERY_PER_SECOND)
        pace.share_at = now
        pace.next_at = max(pace.next_at, now - _CATCH_UP_SECONDS) + 1.0 / (pace.rate * pace.share)

    def throttle(self, call: Call, retry_after: float | None) -> float:
        """Slow the endpoint down after a 429; returns the pause in seconds that now holds for it."""
        self.throttled += 1
        pace = self._paces[call]
        now = self._clock()
        # Without a pace nothing else holds back an endpoint that says 429 and "at once".
        shortest = 0.0 if pace.rate else _UNASKED_PAUSE
        pause = _UNASKED_PAUSE if retry_after is None else max(shortest, retry_after)
        if now >= pace.paused_until:
            pace.share = max(_SLOWEST_SHARE, pace.share * _SLOW_DOWN)
            pace.share_at = now
        pace.paused_until = max(pace.paused_until, now + pause)
        return pause
