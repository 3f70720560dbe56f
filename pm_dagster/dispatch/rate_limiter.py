"""Paces each endpoint of the Jobs API: uses what the workspace allows, and exceeds it only to learn what that is.

Nobody outside Databricks knows how the workspace counts: in fixed seconds, in the second that just passed, or in a
token bucket of unknown size. The law stays within either window and within a bucket of a second's calls, for each
endpoint by itself; smaller buckets it learns.

**The window.** At rate ``r`` a window is ``w = floor(r)`` calls, at least one. No more than ``w`` calls start in any
``w / r + 0.06`` seconds. Calls reach the workspace up to 0.06 seconds later than others of the same window; without
that margin, the first calls of a window meet the last ones of the window before. A window starts at most at twice the
rate, so that time in which nobody asked is caught up, and so that a token bucket of half a second nearly holds. An
eighth of a window may start at once, for the deciding thread commits between two looks and would fall behind.

**The margin where it is not needed.** A rate below the published limit needs no margin of its own: ``w`` calls in
``w / r`` seconds, and the window with its margin at the published limit. At 18 a second that is 18 calls in a second
and 20 in 1.06 seconds.

**The learnt ceiling.** A 429 ends the belief in the rate. The calls of the second before it that were not throttled
are what the workspace let through, and they become the ceiling. A 429 within two seconds after a pause leaves at most
three quarters of the ceiling: two fixed windows had been counted as one. The ceiling holds for 6 seconds after the
pause, then rises by 1, 2, 4, 8 calls a second until the next 429 or the configured rate. Where that 429 finds that nine
tenths of the ceiling got through, the ceiling was right and stays. Calls that had started before a 429 came belong to
it: theirs correct the count and lower nothing a second time.

**Even calls.** A 429 at a ceiling of which not half got through means a bucket too small for a window at twice the
rate. From then on calls start one by one, ``1 / r`` seconds and their part of the margin apart.

**The pause.** Retry-After is honoured as it is; a 429 without it pauses the endpoint for one second. An endpoint
without a rate pauses for at least one second, for nothing else holds it back.

The numbers, the simulations that chose them and what was worse: ``docs/adr/0046-window-and-ceiling.md``.

**Calls that wait for a free thread.** A call that may start and has not left yet counts as one that starts at each
moment anew. So what leaves together after a stall is no more than what may start together.

The limiter neither sleeps nor calls: the worker asks how long to wait.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from pm_dagster.dispatch.model import Call, CallStart

#: What the documentation of the Jobs API allows a workspace, in calls per second.
PUBLISHED: Mapping[Call, float] = {Call.RUN_NOW: 20, Call.REPAIR: 5, Call.GET_RUN: 100, Call.LIST_RUNS: 30}
#: Seconds by which one call may reach the workspace later than another one.
_MARGIN = 0.06
#: How many times the rate calls may follow each other within a window.
_BURST = 2.0
#: The share of a window that may start at once.
_TOGETHER = 1 / 8
#: Seconds for which a learnt ceiling holds.
_HOLD = 6.0
#: Seconds between two steps upwards, and the first step as a share of the ceiling; at least one call a second.
_STEP_SECONDS = 1.0
_STEP_SHARE = 0.05
#: The most that is left of a ceiling that met a 429 within so many seconds after a pause.
_CUT = 0.75
_SOON = 2.0
#: A ceiling that held is right when at least this share of it got through while the rate rose above it.
_CONFIRMED = 0.9
#: A ceiling of which less than this share got through was met too fast, not too often.
_TOO_FAST = 0.5
#: A ceiling is at least this share of the rate that met the 429, and of the configured one.
_LEAST_OF_TRIED = 0.25
_LEAST_OF_RATE = 0.05
#: Seconds of pause after a 429 that asks for none.
_UNASKED_PAUSE = 1.0
#: Floating point: 18 calls a second for a second are 18 calls.
_NEARLY = 1e-9


@dataclass
class _Pace:
    """The state of one endpoint; moments are seconds of the limiter's clock, rates are calls per second.

    Attributes:
        rate: The configured rate; 0 for none.
        limit: What the workspace is believed to allow, at least ``rate``.
        starts: The last calls that started or may start, the oldest first.
        paused_until: No call starts before.
        ceiling: What the last 429 taught; None while nothing but ``rate`` counts.
        held_from: When the ceiling's time begins: the end of the pause.
        even: Whether calls start one by one.
        learnt_at: When the last 429 came that was no part of the one before.
        throttled_at: When its call had started.
        tried: The rate that held when it came.
        proven: The ceiling that had held until then, where the rate had risen above it; else 0.
        soon: Whether it came within two seconds after a pause.
        too_fast: Whether it says that calls came too close together, and nothing about the rate.
    """

    rate: float
    limit: float
    starts: deque[CallStart] = field(default_factory=deque)
    paused_until: float = -math.inf
    ceiling: float | None = None
    held_from: float = -math.inf
    even: bool = False
    learnt_at: float = -math.inf
    throttled_at: float = 0.0
    tried: float = 0.0
    proven: float = 0.0
    soon: bool = False
    too_fast: bool = False

    def rate_at(self, now: float) -> float:
        """The rate that holds at this moment."""
        if self.ceiling is None:
            return self.rate
        rising = now - self.held_from - _HOLD
        if rising < 0:
            return self.ceiling
        steps = min(int(rising / _STEP_SECONDS), 30)
        return min(self.rate, self.ceiling + max(1.0, self.ceiling * _STEP_SHARE) * 2.0**steps)

    def next_start(self, now: float) -> float:
        """The moment from which the windows allow a call."""
        if not self.starts:
            return -math.inf
        rate = self.rate_at(now)
        last, window = self._moment(1, now), _window(rate)
        if self.even:
            return last + 1 / rate + _MARGIN / window
        together = max(1, int(window * _TOGETHER))
        moments = [last]
        if len(self.starts) >= together:
            moments.append(self._moment(together, now) + together / (rate * _BURST))
        believed = self.limit if self.ceiling is None else rate
        for size, seconds in ((window, window / rate), (_window(believed), _window(believed) / believed + _MARGIN)):
            if len(self.starts) >= size:
                moments.append(self._moment(size, now) + seconds)
        return max(moments)

    def _moment(self, back: int, now: float) -> float:
        """When the call that is so many starts back left; now, at the earliest, for one that has not left."""
        return min(self.starts[-back].at, now)

    def got_through(self) -> int:
        """How many calls of the second before the 429 were not throttled, as far as their answers are known."""
        second = (start for start in self.starts if self.throttled_at - 1.0 < start.at <= self.throttled_at)
        return sum(not start.throttled for start in second)

    def learn(self, start: CallStart, now: float) -> None:
        """Take in a 429."""
        if start.at >= self.learnt_at:
            self._begin(start, now)
        if self.too_fast:
            self.even = True
            return
        got = self.got_through()
        learnt = min(got, self.tried * _CUT) if self.soon else got
        if got >= self.proven * _CONFIRMED:
            learnt = max(learnt, self.proven)
        self.ceiling = max(learnt, self.tried * _LEAST_OF_TRIED, self.rate * _LEAST_OF_RATE)

    def _begin(self, start: CallStart, now: float) -> None:
        """Note what held when a 429 came that is no part of the one before."""
        self.learnt_at, self.throttled_at = now, start.at
        self.tried, ceiling = self.rate_at(now), self.ceiling or 0.0
        self.proven = ceiling if self.tried > ceiling else 0.0
        self.soon = start.at < self.held_from + _SOON
        self.too_fast = self.tried == ceiling and not self.even and self.got_through() < self.tried * _TOO_FAST


class RateLimiter:
    """One pace per endpoint, by the law above.

    For the dispatch's one deciding thread.

    Args:
        rates: Calls per second; 0 or absent = no pacing.
        clock: Monotonic seconds.
    """

    def __init__(self, rates: Mapping[Call, float], clock: Callable[[], float]) -> None:
        self._clock = clock
        self._paces = {call: _pace(rates.get(call, 0.0), PUBLISHED.get(call, 0.0)) for call in Call}
        self.throttled = 0

    def delay(self, call: Call) -> float:
        """Seconds until the next call of this endpoint may start; 0 when it may start now."""
        pace, now = self._paces[call], self._clock()
        return max(0.0, pace.paused_until - now, pace.next_start(now) - now if pace.rate else 0.0)

    def rate(self, call: Call) -> float:
        """The calls per second that hold now; 0 without pacing."""
        return self._paces[call].rate_at(self._clock())

    def take(self, call: Call) -> CallStart:
        """Note that a call may start; what is returned belongs to ``sent`` or ``withdraw``, and to ``throttle``."""
        start = CallStart()
        pace = self._paces[call]
        if pace.rate:
            pace.starts.append(start)
        return start

    def sent(self, start: CallStart) -> None:
        """Note that the call leaves now. For the thread that makes the call, whichever it is."""
        start.at = self._clock()

    def withdraw(self, call: Call, start: CallStart) -> None:
        """Forget a call that may not start any more and has not left."""
        pace = self._paces[call]
        if start in pace.starts:
            pace.starts.remove(start)

    def throttle(self, call: Call, retry_after: float | None, start: CallStart) -> float:
        """Take in a 429.

        Args:
            call: The endpoint.
            retry_after: Seconds for which the workspace asks; None where it does not.
            start: The start of the call that was throttled.

        Returns:
            The seconds of pause that this answer asks for.
        """
        self.throttled += 1
        pace = self._paces[call]
        now = self._clock()
        start.throttled = True
        # Without a pace nothing else holds back an endpoint that says 429 and "at once".
        shortest = 0.0 if pace.rate else _UNASKED_PAUSE
        pause = _UNASKED_PAUSE if retry_after is None else max(shortest, retry_after)
        pace.paused_until = max(pace.paused_until, now + pause)
        if pace.rate:
            pace.learn(start, now)
            pace.held_from = max(pace.held_from, pace.paused_until)
        return pause


def _pace(rate: float, published: float) -> _Pace:
    limit = max(rate, published)
    # Several windows, so that what got through in one second is still known when its 429 comes late.
    return _Pace(rate, limit, deque(maxlen=8 * math.ceil(limit) + 8))


def _window(rate: float) -> int:
    return max(1, math.floor(rate + _NEARLY))
