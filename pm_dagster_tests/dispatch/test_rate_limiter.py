"""The pace of each endpoint, on a clock that is moved by hand."""

from __future__ import annotations

import pytest

from pm_dagster.dispatch.model import Call
from pm_dagster.dispatch.rate_limiter import RateLimiter


class Clock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """The moment."""
        return self.now


def calls_during(limiter: RateLimiter, clock: Clock, seconds: float, step: float = 0.001) -> list[float]:
    """The moments at which calls started when somebody asks all the time."""
    moments = []
    end = clock.now + seconds
    while clock.now < end:
        while limiter.delay(Call.RUN_NOW) <= 0:
            limiter.take(Call.RUN_NOW)
            moments.append(clock.now)
        clock.now += step
    return moments


def most_in_a_second(moments: list[float]) -> int:
    return max(sum(start <= moment < start + 1 for moment in moments) for start in moments)


@pytest.mark.parametrize(("rate", "limit"), [(18.0, 20), (4.5, 5), (90.0, 100), (1.0, 2)])
@pytest.mark.parametrize("idle", [0.0, 0.05, 3600.0])
def test_no_second_holds_more_than_the_workspaces_limit(rate: float, limit: int, idle: float) -> None:
    clock = Clock()
    limiter = RateLimiter({Call.RUN_NOW: rate}, clock)
    moments = calls_during(limiter, clock, 2.0)
    clock.now += idle
    moments += calls_during(limiter, clock, 2.0)
    assert most_in_a_second(moments) <= limit


def test_the_share_is_used_fully() -> None:
    clock = Clock()
    moments = calls_during(RateLimiter({Call.RUN_NOW: 18.0}, clock), clock, 10.0)
    assert 178 <= len(moments) <= 184


def test_asking_seldom_loses_little() -> None:
    clock = Clock()
    moments = calls_during(RateLimiter({Call.RUN_NOW: 18.0}, clock), clock, 10.0, step=0.09)
    assert len(moments) >= 170
    assert most_in_a_second(moments) <= 20


def test_a_rate_of_nothing_is_no_pacing() -> None:
    limiter = RateLimiter({}, Clock())
    for _ in range(1000):
        assert limiter.delay(Call.REPAIR) == 0
        limiter.take(Call.REPAIR)


def test_endpoints_do_not_slow_each_other() -> None:
    limiter = RateLimiter(dict.fromkeys(Call, 1.0), Clock())
    limiter.take(Call.RUN_NOW)
    limiter.throttle(Call.REPAIR, 30.0)
    assert limiter.delay(Call.RUN_NOW) == pytest.approx(0.9)
    assert limiter.delay(Call.GET_RUN) == 0


@pytest.mark.parametrize(("retry_after", "pause"), [(30.0, 30.0), (None, 1.0), (0.0, 0.0), (-5.0, 0.0)])
def test_a_429_pauses_for_as_long_as_it_says(retry_after: float | None, pause: float) -> None:
    clock = Clock()
    limiter = RateLimiter({Call.RUN_NOW: 10.0}, clock)
    assert limiter.throttle(Call.RUN_NOW, retry_after) == pause
    assert limiter.delay(Call.RUN_NOW) == pause
    clock.now += pause
    assert limiter.delay(Call.RUN_NOW) == 0
    assert limiter.throttled == 1


def test_a_shorter_pause_does_not_end_a_longer_one() -> None:
    clock = Clock()
    limiter = RateLimiter({Call.RUN_NOW: 10.0}, clock)
    limiter.throttle(Call.RUN_NOW, 30.0)
    limiter.throttle(Call.RUN_NOW, 1.0)
    assert limiter.delay(Call.RUN_NOW) == 30.0


def test_a_pause_holds_without_pacing_too() -> None:
    limiter = RateLimiter({}, Clock())
    limiter.throttle(Call.RUN_NOW, 5.0)
    assert limiter.delay(Call.RUN_NOW) == 5.0


def test_a_429_slows_down_and_time_brings_the_pace_back() -> None:
    clock = Clock()
    limiter = RateLimiter({Call.RUN_NOW: 20.0}, clock)
    limiter.throttle(Call.RUN_NOW, 0.0)
    slow = len(calls_during(limiter, clock, 1.0))
    later = len(calls_during(limiter, clock, 1.0))
    clock.now += 20
    calls_during(limiter, clock, 1.0)
    full = len(calls_during(limiter, clock, 1.0))
    assert 9 <= slow <= 13
    assert later < full
    assert 19 <= full <= 21


def test_many_429s_of_one_moment_slow_down_once() -> None:
    clock = Clock()
    limiter = RateLimiter({Call.RUN_NOW: 20.0}, clock)
    for _ in range(16):
        limiter.throttle(Call.RUN_NOW, 1.0)
    clock.now += 1.0
    assert 9 <= len(calls_during(limiter, clock, 1.0)) <= 13


def test_however_many_429s_it_never_stops() -> None:
    clock = Clock()
    limiter = RateLimiter({Call.RUN_NOW: 20.0}, clock)
    for _ in range(50):
        limiter.throttle(Call.RUN_NOW, 0.0)
        clock.now += 0.001
    assert len(calls_during(limiter, clock, 5.0)) >= 5
