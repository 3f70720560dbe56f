"""The pace of each endpoint, on a clock that is moved by hand."""

from __future__ import annotations

import itertools
import math
import random
from collections import deque

import pytest

from pm_dagster.dispatch.model import Call, CallStart
from pm_dagster.dispatch.rate_limiter import RateLimiter
from pm_dagster_tests.bench.rate_simulation import CASES, SERVERS, measure, simulate


class Clock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """The moment."""
        return self.now


def started(limiter: RateLimiter, call: Call) -> CallStart:
    """A call that may start, and leaves at once."""
    start = limiter.take(call)
    limiter.sent(start)
    return start


def calls_during(
    limiter: RateLimiter, clock: Clock, seconds: float, step: float = 0.001, call: Call = Call.RUN_NOW
) -> list[float]:
    """The moments at which calls started when somebody asks all the time."""
    return [start.at for start in starts_during(limiter, clock, seconds, step, call)]


def starts_during(
    limiter: RateLimiter, clock: Clock, seconds: float, step: float = 0.001, call: Call = Call.RUN_NOW
) -> list[CallStart]:
    """The calls that started when somebody asks all the time."""
    starts = []
    end = clock.now + seconds
    while clock.now < end:
        while limiter.delay(call) <= 0:
            starts.append(started(limiter, call))
        clock.now += step
    return starts


def throttled(limiter: RateLimiter, clock: Clock, retry_after: float | None, through: int) -> None:
    """Let a second's calls start at the full rate, of which so many get through."""
    starts = starts_during(limiter, clock, 1.0)
    for start in starts[through:]:
        limiter.throttle(Call.RUN_NOW, retry_after, start)


def most_in(seconds: float, moments: list[float]) -> int:
    return max(sum(start <= moment < start + seconds for moment in moments) for start in moments)


@pytest.mark.parametrize(
    ("call", "rate", "limit"),
    [
        (Call.RUN_NOW, 18.0, 20),
        (Call.REPAIR, 4.5, 5),
        (Call.GET_RUN, 90.0, 100),
        (Call.RUN_NOW, 1.0, 2),
        (Call.RUN_NOW, 20.0, 20),
        (Call.REPAIR, 5.0, 5),
        (Call.GET_RUN, 100.0, 100),
        (Call.LIST_RUNS, 27.0, 30),
        (Call.RUN_NOW, 35.0, 35),
    ],
)
@pytest.mark.parametrize("idle", [0.0, 0.05, 0.5, 3600.0])
def test_no_second_holds_more_than_the_workspaces_limit(call: Call, rate: float, limit: int, idle: float) -> None:
    clock = Clock()
    limiter = RateLimiter({call: rate}, clock)
    moments = calls_during(limiter, clock, 2.0, call=call)
    clock.now += idle
    moments += calls_during(limiter, clock, 2.0, call=call)
    assert most_in(1.0, moments) <= limit
    # Calls may reach the workspace 0.06 s later than others.
    assert most_in(1.0595, moments) <= limit


@pytest.mark.parametrize("rate", [0.3, 0.5, 1.0, 1.5, 2.7, 4.5, 18.0])
def test_a_window_of_a_rate_holds_no_more_than_its_calls(rate: float) -> None:
    clock = Clock()
    moments = calls_during(RateLimiter({Call.RUN_NOW: rate}, clock), clock, 20.0)
    size = max(1, int(rate))
    assert most_in(size / rate - 0.0005, moments) <= size


@pytest.mark.parametrize(("rate", "least"), [(0.5, 10), (4.5, 90), (18.0, 356), (20.0, 376)])
def test_the_share_is_used_fully(rate: float, least: int) -> None:
    clock = Clock()
    moments = calls_during(RateLimiter({Call.RUN_NOW: rate}, clock), clock, 20.0)
    # The first window starts at once, so that up to a window more than the mean has started at any time.
    assert least <= len(moments) <= 20 * rate + max(1, rate)


def test_a_window_starts_at_most_at_twice_the_rate_and_an_eighth_of_it_at_once() -> None:
    clock = Clock()
    moments = calls_during(RateLimiter({Call.RUN_NOW: 18.0}, clock), clock, 5.0)
    assert most_in(0.0005, moments) == 2
    assert most_in(2 / 36 - 0.0005, moments) == 2


@pytest.mark.parametrize(("rate", "call", "step"), [(20.0, Call.RUN_NOW, 0.08), (90.0, Call.GET_RUN, 0.05)])
def test_a_busy_thread_keeps_the_rate(rate: float, call: Call, step: float) -> None:
    clock = Clock()
    moments = calls_during(RateLimiter({call: rate}, clock), clock, 10.0, step=step, call=call)
    assert len(moments) >= 10 * rate * 0.88


def test_asking_seldom_loses_little() -> None:
    clock = Clock()
    moments = calls_during(RateLimiter({Call.RUN_NOW: 18.0}, clock), clock, 10.0, step=0.05)
    assert len(moments) >= 170
    assert most_in(1.0, moments) <= 20


def test_a_call_counts_from_when_it_left() -> None:
    clock = Clock()
    limiter = RateLimiter({Call.RUN_NOW: 1.0}, clock)
    start = limiter.take(Call.RUN_NOW)
    clock.now += 0.7
    limiter.sent(start)
    assert limiter.delay(Call.RUN_NOW) == pytest.approx(1.0)


def test_a_call_that_waits_for_a_thread_counts_as_one_that_starts_now() -> None:
    clock = Clock()
    limiter = RateLimiter({Call.RUN_NOW: 2.0}, clock)
    first, second = limiter.take(Call.RUN_NOW), limiter.take(Call.RUN_NOW)
    for _ in range(3):
        clock.now += 5.0
        assert limiter.delay(Call.RUN_NOW) == pytest.approx(1.0)
    limiter.sent(first)
    clock.now += 0.4
    assert limiter.delay(Call.RUN_NOW) == pytest.approx(0.6)
    limiter.sent(second)
    clock.now += 0.6
    assert limiter.delay(Call.RUN_NOW) == pytest.approx(0.0)


def test_a_call_that_is_withdrawn_does_not_count() -> None:
    clock = Clock()
    limiter = RateLimiter({Call.RUN_NOW: 1.0}, clock)
    start = limiter.take(Call.RUN_NOW)
    assert limiter.delay(Call.RUN_NOW) == pytest.approx(1.0)
    limiter.withdraw(Call.RUN_NOW, start)
    assert limiter.delay(Call.RUN_NOW) == 0
    limiter.withdraw(Call.RUN_NOW, start)
    RateLimiter({}, clock).withdraw(Call.REPAIR, CallStart())


@pytest.mark.parametrize("rate", [20.0, 18.0, 5.0, 4.5, 100.0])
@pytest.mark.parametrize("seed", range(4))
def test_calls_that_leave_together_after_a_stall_exceed_no_window(rate: float, seed: int) -> None:
    """As a pool of threads that is stuck for a while, with calls in it that may start."""
    chance = random.Random(seed)  # noqa: S311 no secret
    clock = Clock()
    limiter = RateLimiter({Call.RUN_NOW: rate}, clock)
    waiting: deque[CallStart] = deque()
    left: list[CallStart] = []
    stuck_until = withdrawn = 0.0
    while len(left) < 12 * rate:
        while limiter.delay(Call.RUN_NOW) <= 0:
            waiting.append(limiter.take(Call.RUN_NOW))
        if chance.random() < 0.002:
            stuck_until = clock.now + chance.random()
        if waiting and chance.random() < 0.001:
            limiter.withdraw(Call.RUN_NOW, waiting.pop())
            withdrawn += 1
        while waiting and clock.now >= stuck_until:
            limiter.sent(waiting[0])
            left.append(waiting.popleft())
        clock.now += 0.001
    assert withdrawn
    assert most_in(math.floor(rate) / rate, [start.at for start in left]) <= math.floor(rate)
    assert most_in(1 / rate, [start.at for start in left]) <= max(2, math.ceil(rate / 8) + 1)


def test_a_rate_of_nothing_is_no_pacing() -> None:
    limiter = RateLimiter({}, Clock())
    for _ in range(1000):
        assert limiter.delay(Call.REPAIR) == 0
        started(limiter, Call.REPAIR)


def test_endpoints_do_not_slow_each_other() -> None:
    limiter = RateLimiter(dict.fromkeys(Call, 1.0), Clock())
    started(limiter, Call.RUN_NOW)
    limiter.throttle(Call.REPAIR, 30.0, started(limiter, Call.REPAIR))
    assert limiter.delay(Call.RUN_NOW) == pytest.approx(1.0)
    assert limiter.delay(Call.GET_RUN) == 0


@pytest.mark.parametrize(("retry_after", "pause"), [(30.0, 30.0), (None, 1.0), (0.0, 0.0), (-5.0, 0.0)])
def test_a_429_pauses_for_as_long_as_it_says(retry_after: float | None, pause: float) -> None:
    clock = Clock()
    limiter = RateLimiter({Call.RUN_NOW: 10.0}, clock)
    start = started(limiter, Call.RUN_NOW)
    clock.now += 2.0
    assert limiter.throttle(Call.RUN_NOW, retry_after, start) == pause
    assert limiter.delay(Call.RUN_NOW) == pause
    clock.now += pause
    assert limiter.delay(Call.RUN_NOW) == 0
    assert limiter.throttled == 1


def test_a_shorter_pause_does_not_end_a_longer_one() -> None:
    clock = Clock()
    limiter = RateLimiter({Call.RUN_NOW: 10.0}, clock)
    start = started(limiter, Call.RUN_NOW)
    limiter.throttle(Call.RUN_NOW, 30.0, start)
    limiter.throttle(Call.RUN_NOW, 1.0, start)
    assert limiter.delay(Call.RUN_NOW) == 30.0


@pytest.mark.parametrize(("retry_after", "pause"), [(5.0, 5.0), (None, 1.0), (0.0, 1.0)])
def test_a_pause_holds_without_pacing_too(retry_after: float | None, pause: float) -> None:
    limiter = RateLimiter({}, Clock())
    assert limiter.throttle(Call.RUN_NOW, retry_after, started(limiter, Call.RUN_NOW)) == pause
    assert limiter.delay(Call.RUN_NOW) == pause
    assert limiter.rate(Call.RUN_NOW) == 0


def test_a_429_slows_down_to_what_got_through_and_time_brings_the_pace_back() -> None:
    clock = Clock()
    limiter = RateLimiter({Call.RUN_NOW: 20.0}, clock)
    throttled(limiter, clock, 0.0, through=10)
    assert limiter.rate(Call.RUN_NOW) == 10
    clock.now += 1.0
    held = calls_during(limiter, clock, 4.9)
    assert 44 <= len(held) <= 50
    rates = []
    for _ in range(6):
        rates.append(limiter.rate(Call.RUN_NOW))
        calls_during(limiter, clock, 1.0)
    assert rates == [10, 11, 12, 14, 18, 20]
    full = len(calls_during(limiter, clock, 1.0))
    assert 18 <= full <= 20


def test_the_ceiling_holds_from_the_end_of_the_pause() -> None:
    clock = Clock()
    limiter = RateLimiter({Call.RUN_NOW: 20.0}, clock)
    throttled(limiter, clock, 30.0, through=10)
    clock.now += 30.0 + 5.9
    assert limiter.rate(Call.RUN_NOW) == 10
    clock.now += 0.2
    assert limiter.rate(Call.RUN_NOW) == 11


def test_a_429_beside_a_full_window_takes_little() -> None:
    clock = Clock()
    limiter = RateLimiter({Call.RUN_NOW: 20.0}, clock)
    starts = starts_during(limiter, clock, 1.5)
    limiter.throttle(Call.RUN_NOW, 1.0, starts[-1])
    assert 17 <= limiter.rate(Call.RUN_NOW) <= 19


def test_many_429s_of_one_moment_slow_down_once() -> None:
    clock = Clock()
    limiter = RateLimiter({Call.RUN_NOW: 20.0}, clock)
    starts = starts_during(limiter, clock, 0.8)
    for start in starts[4:]:
        limiter.throttle(Call.RUN_NOW, 1.0, start)
    clock.now += 1.0
    # Four got through in the second; a quarter of what was tried is the least.
    assert limiter.rate(Call.RUN_NOW) == 5
    for start in starts[4:]:
        limiter.throttle(Call.RUN_NOW, 0.0, start)
    assert limiter.rate(Call.RUN_NOW) == 5


def test_answers_that_come_later_correct_what_got_through() -> None:
    clock = Clock()
    limiter = RateLimiter({Call.RUN_NOW: 20.0}, clock)
    starts = starts_during(limiter, clock, 0.8)
    limiter.throttle(Call.RUN_NOW, 1.0, starts[19])
    assert limiter.rate(Call.RUN_NOW) == 19
    clock.now += 0.1
    for start in starts[12:19]:
        limiter.throttle(Call.RUN_NOW, 1.0, start)
    assert limiter.rate(Call.RUN_NOW) == 12


def test_a_ceiling_that_held_is_not_lowered_by_an_attempt_to_rise() -> None:
    clock = Clock()
    limiter = RateLimiter({Call.RUN_NOW: 20.0}, clock)
    throttled(limiter, clock, 1.0, through=10)
    calls_during(limiter, clock, 6.8)
    starts = starts_during(limiter, clock, 1.0)
    assert limiter.rate(Call.RUN_NOW) > 10
    second = [start for start in starts if start.at > starts[-1].at - 1.0]
    for start in second[9:]:
        limiter.throttle(Call.RUN_NOW, 1.0, start)
    assert limiter.rate(Call.RUN_NOW) == 10


def test_a_429_soon_after_a_pause_lowers_the_ceiling_by_a_quarter_at_least() -> None:
    clock = Clock()
    limiter = RateLimiter({Call.RUN_NOW: 20.0}, clock)
    throttled(limiter, clock, 1.0, through=16)
    clock.now += 1.0
    starts = starts_during(limiter, clock, 0.6)
    limiter.throttle(Call.RUN_NOW, 1.0, starts[14])
    assert limiter.rate(Call.RUN_NOW) == 12


def test_a_ceiling_of_which_little_gets_through_is_met_one_by_one() -> None:
    clock = Clock()
    limiter = RateLimiter({Call.RUN_NOW: 20.0}, clock)
    throttled(limiter, clock, 1.0, through=12)
    clock.now += 1.0
    starts = starts_during(limiter, clock, 0.3)
    for start in starts[3:5]:
        limiter.throttle(Call.RUN_NOW, 1.0, start)
    assert limiter.rate(Call.RUN_NOW) == 12
    clock.now += 1.0
    moments = calls_during(limiter, clock, 3.0)
    assert min(after - before for before, after in itertools.pairwise(moments)) >= 1 / 12
    assert len(moments) >= 33


def test_however_many_429s_it_never_stops() -> None:
    clock = Clock()
    limiter = RateLimiter({Call.RUN_NOW: 20.0}, clock)
    for _ in range(50):
        limiter.throttle(Call.RUN_NOW, 0.0, started(limiter, Call.RUN_NOW))
        clock.now += 0.001
    assert limiter.rate(Call.RUN_NOW) == 1
    # One call a second, each with the margin.
    assert len(calls_during(limiter, clock, 5.5)) >= 5


# ---- against servers that count


@pytest.mark.parametrize("case", ["20 of 20", "18 of 20", "5 of 5", "4.5 of 5", "90 of 100"])
@pytest.mark.parametrize("server", ["fixed window", "sliding window", "bucket of 2 s", "bucket of 1 s"])
def test_the_limit_is_used_without_a_429(case: str, server: str) -> None:
    for seed in range(3):
        result = simulate(CASES[case], server, seed)
        assert result.throttled == 0
        assert result.seconds <= 1.04 * CASES[case].ideal


@pytest.mark.parametrize("case", ["10, believed 20", "10, believed 18", "half is taken and given back"])
@pytest.mark.parametrize("server", ["fixed window", "sliding window", "bucket of 2 s", "bucket of 1 s"])
def test_a_limit_that_is_lower_is_learnt(case: str, server: str) -> None:
    ratio, throttled = measure(CASES[case], server, seeds=4)
    assert ratio <= 1.18
    assert throttled <= 25


@pytest.mark.parametrize("server", ["fixed window", "sliding window", "bucket of 2 s", "bucket of 1 s"])
def test_another_client_is_noticed_within_five_seconds_and_forgotten_within_ten(server: str) -> None:
    for seed in range(4):
        through = simulate(CASES["half is taken and given back"], server, seed).through
        meanwhile = [through.get(second, 0) for second in range(13, 20)]
        after = [through.get(second, 0) for second in range(30, 35)]
        assert 7 * 5 <= sum(meanwhile) <= 7 * 11
        assert sum(after) >= 5 * 17


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("server", SERVERS)
def test_every_batch_ends_whatever_counts(case: str, server: str) -> None:
    # A bucket of a tenth of a second at 10 calls a second holds one token; each call that comes early is throttled.
    assert simulate(CASES[case], server, 5).seconds <= 5 * CASES[case].ideal
