"""The rate limiter against simulated servers: how long a batch takes beside what the limit allows, and how many 429s.

``python -m pm_dagster_tests.bench.rate_simulation`` prints the table. All randomness is seeded: the same each time.
"""

from __future__ import annotations

import heapq
import itertools
import json
import math
import random
import sys
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from pm_dagster.dispatch.model import Call, CallStart
from pm_dagster.dispatch.rate_limiter import RateLimiter, Record

#: Seconds from the start of a call to the workspace's count of it, at least, and from there back.
_THERE, _BACK = 0.025, 0.05
#: Seconds by which each way may take longer.
JITTER = 0.06
_CONCURRENCY = 32
#: What the database's clock is ahead.
_DATABASE = 1234.5
_LONGEST = 400.0


class Server(Protocol):
    """How a workspace counts."""

    def allow(self, now: float, limit: float) -> bool:
        """Whether a call at this moment gets through a limit of so many calls per second."""


class FixedWindow:
    """So many calls in each second of a clock that nobody knows."""

    def __init__(self, chance: random.Random) -> None:
        self._offset = chance.random()
        self._second, self._count = -1, 0

    def allow(self, now: float, limit: float) -> bool:
        """Count the call if there is room."""
        second = math.floor(now + self._offset)
        if second != self._second:
            self._second, self._count = second, 0
        if self._count >= limit:
            return False
        self._count += 1
        return True


class SlidingWindow:
    """So many calls in the second that just passed."""

    def __init__(self, _: random.Random) -> None:
        self._allowed: deque[float] = deque()

    def allow(self, now: float, limit: float) -> bool:
        """Count the call if there is room."""
        while self._allowed and self._allowed[0] <= now - 1:
            self._allowed.popleft()
        if len(self._allowed) >= limit:
            return False
        self._allowed.append(now)
        return True


class TokenBucket:
    """A bucket of so many seconds of the limit, full at first."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._tokens, self._at = math.inf, 0.0

    def allow(self, now: float, limit: float) -> bool:
        """Take a token if there is one."""
        self._tokens = min(max(1.0, limit * self._seconds), self._tokens + (now - self._at) * limit)
        self._at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True


SERVERS: Mapping[str, Callable[[random.Random], Server]] = {
    "fixed window": FixedWindow,
    "sliding window": SlidingWindow,
    "bucket of 2 s": lambda _: TokenBucket(2.0),
    "bucket of 1 s": lambda _: TokenBucket(1.0),
    "bucket of 0.5 s": lambda _: TokenBucket(0.5),
    "bucket of 0.1 s": lambda _: TokenBucket(0.1),
}


@dataclass(frozen=True)
class Dispatcher:
    """One of the dispatchers of a batch.

    Attributes:
        begins: When it begins, in seconds.
        clock: What its clock is ahead of the others', in seconds.
        killed: When it is killed; the others get its rows then.
    """

    begins: float = 0.0
    clock: float = 0.0
    killed: float = math.inf


@dataclass(frozen=True)
class Case:
    """One batch.

    Attributes:
        call: The endpoint.
        rate: The configured rate in calls per second.
        limit: What the workspace allows, in calls per second.
        rows: How many calls have to get through.
        others: Another client's calls per second, by the second; they count whether they get through or not.
        others_total: How many calls the other client takes from the budget, for the ideal.
        retry_after: What a 429 says; None for nothing.
        round: Seconds from one look of the deciding thread to its next: commits, on a busy machine.
        dispatchers: Those who share the rows.
        shares: Whether they share the budget, too.
    """

    call: Call
    rate: float
    limit: float
    rows: int
    others: Callable[[float], float] = lambda _now: 0.0
    others_total: float = 0.0
    retry_after: float | None = 1.0
    round: float = 0.0
    dispatchers: tuple[Dispatcher, ...] = (Dispatcher(),)
    shares: bool = True

    @property
    def ideal(self) -> float:
        """Seconds by arithmetic."""
        return (self.rows + self.others_total) / min(self.rate, self.limit)


def _half(now: float) -> float:
    return 10.0 if 8 <= now < 20 else 0.0


CASES: Mapping[str, Case] = {
    "20 of 20": Case(Call.RUN_NOW, 20, 20, 300),
    "20 of 20, busy": Case(Call.RUN_NOW, 20, 20, 300, round=0.08),
    "18 of 20": Case(Call.RUN_NOW, 18, 20, 300),
    "18 of 20, busy": Case(Call.RUN_NOW, 18, 20, 300, round=0.08),
    "5 of 5": Case(Call.REPAIR, 5, 5, 75),
    "4.5 of 5": Case(Call.REPAIR, 4.5, 5, 75),
    "90 of 100": Case(Call.GET_RUN, 90, 100, 1350),
    "10, believed 20": Case(Call.RUN_NOW, 20, 10, 300),
    "10, believed 18": Case(Call.RUN_NOW, 18, 10, 600),
    "half is taken and given back": Case(Call.RUN_NOW, 20, 20, 600, _half, 120),
}


def _several(count: int, apart: float = 0.3) -> tuple[Dispatcher, ...]:
    """So many that begin soon after each other, with clocks of their own."""
    return tuple(Dispatcher(n * apart, clock=100.0 * n - 50.0) for n in range(count))


_TWO = _several(2)
SHARED: Mapping[str, Case] = {
    "two, 20 of 20": Case(Call.RUN_NOW, 20, 20, 300, dispatchers=_TWO),
    "two, busy": Case(Call.RUN_NOW, 20, 20, 300, round=0.08, dispatchers=_TWO),
    "two, 18 of 20": Case(Call.RUN_NOW, 18, 20, 300, dispatchers=_TWO),
    "two, 5 of 5": Case(Call.REPAIR, 5, 5, 75, dispatchers=_TWO),
    "four, 20 of 20": Case(Call.RUN_NOW, 20, 20, 300, dispatchers=_several(4)),
    "four, busy": Case(Call.RUN_NOW, 20, 20, 300, round=0.08, dispatchers=_several(4)),
    "four, 5 of 5": Case(Call.REPAIR, 5, 5, 75, dispatchers=_several(4)),
    "four, 90 of 100": Case(Call.GET_RUN, 90, 100, 1350, dispatchers=_several(4)),
    "eight, 20 of 20": Case(Call.RUN_NOW, 20, 20, 600, dispatchers=_several(8, 0.1)),
    "two, 10, believed 20": Case(Call.RUN_NOW, 20, 10, 300, dispatchers=_TWO),
    "four, 10, believed 20": Case(Call.RUN_NOW, 20, 10, 300, dispatchers=_several(4)),
    "two, half is taken": Case(Call.RUN_NOW, 20, 20, 600, _half, 120, dispatchers=_TWO),
    "two, one killed": Case(Call.RUN_NOW, 20, 20, 300, dispatchers=(Dispatcher(killed=5.0), Dispatcher(0.3))),
    "two, one comes at 5 s": Case(Call.RUN_NOW, 20, 20, 300, dispatchers=(Dispatcher(), Dispatcher(5.0))),
    "two that share nothing": Case(Call.RUN_NOW, 20, 20, 300, dispatchers=_TWO, shares=False),
}


@dataclass
class Result:
    """What came of a batch.

    Attributes:
        seconds: Until the last call had its answer.
        throttled: How many answers were 429.
        through: When the calls that got through had started, by the second.
        each: When each dispatcher's last call had its answer.
        exchanges: How often the dispatchers read and wrote what they share.
    """

    seconds: float
    throttled: int
    through: dict[int, int]
    each: dict[int, float] = field(default_factory=dict)
    exchanges: int = 0


class _Batch:
    """A workspace, the clock of all, and the record that the dispatchers share."""

    def __init__(self, case: Case, server: Server, chance: random.Random) -> None:
        self.case, self.server, self.chance = case, server, chance
        self.now = 0.0
        self.result = Result(0.0, 0, {})
        self.record: Record | None = None
        self._order = itertools.count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        each, more = divmod(case.rows, len(case.dispatchers))
        self.dispatchers = [_Sender(self, one, each + (n < more), n) for n, one in enumerate(case.dispatchers)]

    def run(self) -> Result:
        self._others()
        for one in self.dispatchers:
            self.at(one.its.begins, one.send)
        while any(one.left for one in self.dispatchers) and self._events and self.now < _LONGEST:
            self.now, _, happen = heapq.heappop(self._events)
            happen()
        if any(one.left for one in self.dispatchers):
            self.result.seconds = math.inf
        return self.result

    def at(self, moment: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self._events, (moment, next(self._order), happen))

    def _others(self) -> None:
        moment = 0.0
        while moment < _LONGEST / 4:
            rate = self.case.others(moment)
            if rate:
                self.at(moment, lambda: _none(self.server.allow(self.now, self.case.limit)))
            moment += 1 / rate if rate else 0.05


class _Sender:
    """One dispatcher of a batch."""

    def __init__(self, batch: _Batch, its: Dispatcher, rows: int, number: int) -> None:
        self.batch, self.its, self.number = batch, its, number
        case = batch.case
        shares = case.shares and len(case.dispatchers) > 1
        self.limiter = RateLimiter({case.call: case.rate}, lambda: batch.now + its.clock, shares=shares)
        self.left = self._waiting = rows
        self._in_flight, self._wake_at, self._busy_until = 0, -1.0, -1.0

    def send(self) -> None:
        batch, limiter, call, chance = self.batch, self.limiter, self.batch.case.call, self.batch.chance
        if batch.now >= self.its.killed:
            # What was sent has its effect; the rest is the others'.
            for number in range(self._waiting):
                self._hand_over(number)
            self.left, self._waiting = 0, 0
            return
        if batch.now < self._busy_until:
            self._wake(self._busy_until)
            return
        room = min(self._waiting, _CONCURRENCY - self._in_flight)
        if limiter.wants_exchange({call: room}):
            batch.result.exchanges += 1
            batch.record = json.loads(json.dumps(limiter.exchange({call: room}, batch.record, batch.now + _DATABASE)))
        while self._waiting and self._in_flight < _CONCURRENCY and limiter.delay(call) <= 0:
            start = limiter.take(call)
            limiter.sent(start)
            self._waiting -= 1
            self._in_flight += 1
            batch.at(batch.now + _THERE + chance.random() * JITTER, partial(self._arrive, start))
        self._busy_until = batch.now + batch.case.round
        if self._waiting and self._in_flight < _CONCURRENCY:
            # A loop wakes a little late.
            pause = max(batch.case.round, min(limiter.delay(call), limiter.exchange_in))
            self._wake(batch.now + pause + chance.random() * 0.002)

    def _hand_over(self, number: int) -> None:
        living = [one for one in self.batch.dispatchers if one.its.killed == math.inf]
        other = living[number % len(living)]
        other.left += 1
        other._waiting += 1
        self.batch.at(self.batch.now, other.send)

    def _wake(self, moment: float) -> None:
        if self._wake_at <= self.batch.now or moment < self._wake_at:
            self._wake_at = moment
            self.batch.at(moment, self.send)

    def _arrive(self, start: CallStart) -> None:
        batch = self.batch
        allowed = batch.server.allow(batch.now, batch.case.limit)
        back = batch.now + _BACK + batch.chance.random() * JITTER
        batch.at(back, partial(self._answered, start, allowed=allowed))

    def _answered(self, start: CallStart, *, allowed: bool) -> None:
        result = self.batch.result
        self._in_flight -= 1
        if allowed:
            self.left = max(0, self.left - 1)
            result.seconds = result.each[self.number] = self.batch.now
            second = int(start.at)
            result.through[second] = result.through.get(second, 0) + 1
        else:
            result.throttled += 1
            self._waiting += 1
            self.limiter.throttle(self.batch.case.call, self.batch.case.retry_after, start)
        self.send()


def _none(_: object) -> None:
    return None


def simulate(case: Case, server: str, seed: int) -> Result:
    """One batch against one kind of server."""
    chance = random.Random(seed)  # noqa: S311  # jitter, no secret
    return _Batch(case, SERVERS[server](chance), chance).run()


def measure(case: Case, server: str, seeds: int = 8) -> tuple[float, float]:
    """The mean ratio to the ideal and the mean number of 429s."""
    results = [simulate(case, server, seed) for seed in range(seeds)]
    return sum(r.seconds for r in results) / seeds / case.ideal, sum(r.throttled for r in results) / seeds


def main() -> None:
    """Print both tables."""
    for cases in (CASES, SHARED):
        lines = [f"| server | {' | '.join(cases)} |", f"| --- |{' --- |' * len(cases)}"]
        for server in SERVERS:
            cells = [measure(case, server) for case in cases.values()]
            lines.append(
                f"| {server} | " + " | ".join(f"{ratio:.2f} ({throttled:.1f})" for ratio, throttled in cells) + " |"
            )
        sys.stdout.write("\n".join(lines) + "\n\n")


if __name__ == "__main__":
    main()
