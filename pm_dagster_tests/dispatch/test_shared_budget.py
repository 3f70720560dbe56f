"""Rate limiters that share a record, on clocks that are moved by hand, and with a dispatch on the fakes."""

from __future__ import annotations

import json
import logging
import math
import statistics
from collections.abc import Callable
from dataclasses import replace

import pytest

from pm_dagster.config.settings import Settings
from pm_dagster.dispatch.model import Call, CallStart
from pm_dagster.dispatch.rate_limiter import RateLimiter, Record
from pm_dagster.dispatch.service import Dispatch
from pm_dagster.dispatch.shared_budget import SharedBudget
from pm_dagster.errors import ConfigurationError, ControlPlaneUnavailable, ProcessManagerError
from pm_dagster_tests.bench.rate_simulation import SHARED, Dispatcher, simulate
from pm_dagster_tests.fakes.control_plane import InMemoryControlPlane, InMemoryDatabase
from pm_dagster_tests.fakes.runs import InMemoryRuns

_STEP = 0.005


class Group:
    """Dispatchers of one workspace, and the record that they share; ``now`` is the time of all."""

    def __init__(self) -> None:
        self.now = 0.0
        self.database = 5000.0
        self.record: Record | None = None
        self.exchanges = 0

    def limiter(self, ahead: float = 0.0, **rates: float) -> RateLimiter:
        """A limiter whose clock is so many seconds ahead."""
        given = {Call[name.upper()]: rate for name, rate in (rates or {"run_now": 20.0}).items()}
        return RateLimiter(given, lambda: self.now + ahead, shares=True)

    def exchange(self, limiter: RateLimiter, call: Call = Call.RUN_NOW, due: int = 100) -> None:
        """What a dispatch does before it looks for calls that may start."""
        if limiter.wants_exchange({call: due}):
            self.exchanges += 1
            self.record = json.loads(json.dumps(limiter.exchange({call: due}, self.record, self.now + self.database)))

    def leave(self, limiter: RateLimiter) -> None:
        """What a dispatch does when it has nothing left."""
        self.record = json.loads(json.dumps(limiter.leave(self.record, self.now + self.database)))

    def start(self, limiter: RateLimiter, call: Call = Call.RUN_NOW, due: int = 100) -> list[CallStart]:
        """The calls of this limiter that start now."""
        self.exchange(limiter, call, due)
        starts: list[CallStart] = []
        while len(starts) < due and limiter.delay(call) <= 0:
            starts.append(limiter.take(call))
            limiter.sent(starts[-1])
        return starts

    def wait_for(self, limiter: RateLimiter) -> None:
        """Let time pass until a call of this limiter may start."""
        for _ in range(1000):
            self.exchange(limiter)
            if limiter.delay(Call.RUN_NOW) <= 0:
                return
            self.now += _STEP
        raise AssertionError("no call may start")

    def next(self, limiter: RateLimiter) -> CallStart:
        """The next call of this limiter."""
        self.wait_for(limiter)
        start = limiter.take(Call.RUN_NOW)
        limiter.sent(start)
        return start

    def run(self, seconds: float, *limiters: RateLimiter, call: Call = Call.RUN_NOW) -> list[list[float]]:
        """When the calls of each start, who all have calls to make all the time."""
        moments: list[list[float]] = [[] for _ in limiters]
        end = self.now + seconds
        while self.now < end:
            for number, limiter in enumerate(limiters):
                moments[number] += [self.now] * len(self.start(limiter, call))
            self.now += _STEP
        return moments


def most_in(seconds: float, moments: list[float]) -> int:
    return max(sum(start - 1e-6 <= moment < start + seconds - 1e-6 for moment in moments) for start in moments)


@pytest.fixture
def group() -> Group:
    """Nobody yet."""
    return Group()


# ---- alone


def test_nothing_starts_before_the_first_exchange(group: Group) -> None:
    limiter = group.limiter()
    assert limiter.delay(Call.RUN_NOW) > 0
    assert limiter.wants_exchange({Call.RUN_NOW: 1})
    group.exchange(limiter, Call.RUN_NOW)
    assert limiter.delay(Call.RUN_NOW) == 0


def test_alone_it_is_as_fast_as_one_that_shares_nothing_and_asks_once_a_second(group: Group) -> None:
    (moments,) = group.run(10.0, group.limiter())
    alone = Group()
    (reference,) = alone.run(10.0, RateLimiter({Call.RUN_NOW: 20.0}, lambda: alone.now))
    assert moments == reference
    assert alone.exchanges == 0
    assert group.exchanges <= 15


def test_who_has_nothing_to_send_asks_nothing(group: Group) -> None:
    limiter = group.limiter()
    group.run(1.0, limiter)
    for _ in range(100):
        group.now += 0.1
        assert not limiter.wants_exchange({})
        assert not limiter.wants_exchange({Call.RUN_NOW: 0, Call.LIST_RUNS: 5})
        assert limiter.exchange_in == math.inf or limiter.exchange_in > 0
    assert not limiter.takes_part


def test_an_endpoint_without_a_rate_is_not_shared(group: Group) -> None:
    limiter = group.limiter(repair=5.0)
    assert not limiter.wants_exchange({Call.RUN_NOW: 5})
    assert limiter.delay(Call.RUN_NOW) == 0


# ---- several


@pytest.mark.parametrize("count", [2, 3, 4, 8])
@pytest.mark.parametrize(("call", "rate"), [(Call.RUN_NOW, 20.0), (Call.REPAIR, 5.0), (Call.GET_RUN, 100.0)])
def test_together_they_stay_in_the_window_and_use_it(group: Group, count: int, call: Call, rate: float) -> None:
    limiters = [group.limiter(1000.0 * n, **{call.name.lower(): rate}) for n in range(count)]
    each = group.run(20.0, *limiters, call=call)
    together = sorted(moment for moments in each for moment in moments)
    assert most_in(1.0, together) <= rate
    assert len(together) >= 20.0 * rate / 1.08
    # Nobody is left out.
    assert min(map(len, each)) >= len(together) / count / 2


def test_one_that_comes_waits_until_the_holder_has_seen_it(group: Group) -> None:
    first, second = group.limiter(), group.limiter(-77.0)
    (before,) = group.run(0.3, first)
    both = group.run(3.0, first, second)
    assert 0.3 < both[1][0] <= 1.2
    assert most_in(1.0, sorted(before + both[0] + both[1])) <= 20


def test_one_that_comes_when_the_holder_is_busy_with_something_else(group: Group) -> None:
    """What the holder sent since it last wrote is unknown, and is counted."""
    first, second = group.limiter(), group.limiter()
    (before,) = group.run(0.7, first)
    (after,) = group.run(3.0, second)
    assert after[0] < 1.2
    assert most_in(1.0, sorted(before + after)) <= 20


def test_one_that_left_is_not_waited_for(group: Group) -> None:
    first, second = group.limiter(), group.limiter()
    group.run(0.1, first)
    group.leave(first)
    group.now += 1.1
    assert group.start(second)
    group.leave(second)
    group.leave(first)
    assert group.record is not None
    assert (group.record["seen"], group.record["whole"]) == ({}, ["", 0.0])


def test_who_lingers_costs_the_others_nothing(group: Group) -> None:
    first, second = group.limiter(), group.limiter()
    group.run(2.0, first, second)
    (moments,) = group.run(10.0, first)
    assert len(moments) >= 10.0 * 20.0 / 1.08
    # It goes on at once, and is counted again.
    both = group.run(2.0, first, second)
    assert both[1]
    assert most_in(1.0, sorted(moments + both[0] + both[1])) <= 20


def test_who_is_killed_costs_the_others_a_block(group: Group) -> None:
    first, second = group.limiter(), group.limiter()
    group.run(2.0, first, second)
    group.exchange(second, Call.RUN_NOW)
    (moments,) = group.run(5.0, first)
    assert len(moments) >= 5.0 * 20.0 / 1.08 - 5


def test_moments_that_are_not_used_are_given_back(group: Group) -> None:
    first, second = group.limiter(), group.limiter()
    group.run(2.0, first, second)
    group.exchange(second, Call.RUN_NOW)
    reserved = len(second._paces[Call.RUN_NOW].slots)
    before = _starts(group)
    group.leave(second)
    assert reserved > 0
    assert len(_starts(group)) == len(before) - reserved
    assert set(_starts(group)) <= set(before)


def _starts(group: Group) -> list[float]:
    assert group.record is not None
    return [moment for moment, _ in group.record["calls"]["run-now"]["starts"]]


def test_a_moment_that_passed_is_not_used(group: Group) -> None:
    first, second = group.limiter(), group.limiter()
    group.run(3.0, first, second)
    group.exchange(second, Call.RUN_NOW)
    group.now += 0.8
    assert second.delay(Call.RUN_NOW) > 0
    assert second.wants_exchange({Call.RUN_NOW: 1})


def test_a_start_that_was_late_is_corrected(group: Group) -> None:
    first, second = group.limiter(), group.limiter()
    group.run(3.0, first, second)
    group.wait_for(second)
    start = second.take(Call.RUN_NOW)
    group.now += 0.4
    second.sent(start)
    left = round(group.now + group.database, 4)
    group.now += 1.0
    group.exchange(second, Call.RUN_NOW)
    assert any(abs(moment - left) < 0.001 for moment in _starts(group))


def test_the_highest_rate_is_the_rate_of_all(group: Group) -> None:
    slow, fast = group.limiter(run_now=5.0), group.limiter(run_now=18.0)
    each = group.run(10.0, slow, fast)
    together = sorted(each[0] + each[1])
    assert most_in(1.0, together) <= 18
    assert len(together) >= 160
    assert len(each[0]) >= 40
    group.leave(fast)
    (alone,) = group.run(10.0, slow)
    assert len(alone) <= 52


@pytest.mark.parametrize("count", [2, 4, 8])
@pytest.mark.parametrize("seconds", [0.1, 0.2, 0.3])
def test_deciding_threads_that_look_seldom_go_on(count: int, seconds: float) -> None:
    """On a machine that is busy: each moment that is reserved may be late at the next look."""
    at = SHARED["four, busy"]
    dispatchers = tuple(Dispatcher(0.1 * n) for n in range(count))
    for seed in range(2):
        result = simulate(replace(at, rows=100, round=seconds, dispatchers=dispatchers), "sliding window", seed)
        assert result.seconds < 3 * at.ideal
        assert result.throttled <= 1


# ---- what one learns


def test_a_429_is_known_to_the_others_within_a_second(group: Group) -> None:
    first, second = group.limiter(), group.limiter(31.0)
    group.run(2.0, first, second)
    first.throttle(Call.RUN_NOW, 8.0, group.next(first))
    paused_at = group.now
    group.run(0.6, first, second)
    assert second.delay(Call.RUN_NOW) == pytest.approx(paused_at + 8.0 - group.now, abs=0.3)
    assert second.rate(Call.RUN_NOW) == pytest.approx(first.rate(Call.RUN_NOW))
    assert second.rate(Call.RUN_NOW) < 20
    assert Call.RUN_NOW in second.heard
    assert Call.RUN_NOW not in first.heard
    # And what follows is known, too: the pause ends for both, and the rate rises for both.
    each = group.run(9.5, first, second)
    assert all(each)
    assert min(each[0] + each[1]) >= paused_at + 8.0
    group.run(15.0, first, second)
    assert (first.rate(Call.RUN_NOW), second.rate(Call.RUN_NOW)) == (20.0, 20.0)


def test_429s_of_what_was_reserved_before_lower_nothing_twice(group: Group) -> None:
    first, second = group.limiter(), group.limiter()
    group.run(2.0, first, second)
    group.exchange(second, Call.RUN_NOW)
    first.throttle(Call.RUN_NOW, 1.0, group.next(first))
    group.exchange(first, due=0)
    learnt = first._paces[Call.RUN_NOW]
    # Reserved before, and sent after the other one's 429 was told.
    group.now += second.delay(Call.RUN_NOW) + 0.001
    theirs = second.take(Call.RUN_NOW)
    second.sent(theirs)
    group.now += 0.1
    second.throttle(Call.RUN_NOW, 1.0, theirs)
    group.exchange(second)
    told = second._paces[Call.RUN_NOW]
    assert told.learnt_at == pytest.approx(learnt.learnt_at, abs=0.001)
    assert (told.tried, told.soon) == (20.0, False)
    assert told.paused_until == pytest.approx(group.now + 1.0)


def test_what_was_learnt_outlives_the_dispatch(group: Group) -> None:
    first, second = group.limiter(), group.limiter(900.0)
    group.run(2.0, first)
    for start in list(first._paces[Call.RUN_NOW].starts)[-10:]:
        first.throttle(Call.RUN_NOW, 1.0, start)
    rate = first.rate(Call.RUN_NOW)
    group.leave(first)
    group.now += 2.0
    group.start(second)
    assert rate < 20
    assert second.rate(Call.RUN_NOW) == pytest.approx(rate)


# ---- clocks


def test_a_database_clock_that_goes_back_stops_nobody(group: Group) -> None:
    first, second = group.limiter(), group.limiter()
    group.run(3.0, first, second)
    group.database -= 3600.0
    each = group.run(5.0, first, second)
    assert all(each)
    assert sum(map(len, each)) >= 5.0 * 20.0 / 1.15


def test_a_database_clock_that_goes_forward_stops_nobody(group: Group) -> None:
    first, second = group.limiter(), group.limiter()
    group.run(3.0, first, second)
    group.database += 3600.0
    each = group.run(5.0, first, second)
    assert all(each)


def test_slow_answers_of_the_database_move_no_moment(group: Group) -> None:
    """The difference of two clocks is measured by the fastest answers."""
    limiter = group.limiter()
    for late in (0.0, 0.05, 0.2, 0.01):
        group.record = limiter.exchange({Call.RUN_NOW: 1}, None, group.now - late + group.database)
        group.now += 0.01
    assert limiter._offset == pytest.approx(group.database, abs=0.001)


# ---- against simulated servers


@pytest.mark.parametrize("case", SHARED)
@pytest.mark.parametrize("server", ["fixed window", "sliding window", "bucket of 1 s"])
def test_the_aims_hold_against_servers_of_each_kind(case: str, server: str) -> None:
    at = SHARED[case]
    results = [simulate(at, server, seed) for seed in range(2)]
    ratio = statistics.mean(result.seconds for result in results) / at.ideal
    share = statistics.mean(result.throttled for result in results) / at.rows
    if not at.shares:
        assert ratio > 1.1 or share > 0.005
    elif at.limit < at.rate or at.others_total:
        assert ratio <= 1.18
    else:
        assert ratio <= 1.1
        assert share == 0


# ---- who carries it out


class Away(InMemoryControlPlane):
    """Whose record cannot be had, for this reason; ``asked`` counts."""

    error: ProcessManagerError = ControlPlaneUnavailable("away")
    asked = 0

    def share_budget(self, workspace: str, change: Callable[..., Record]) -> bool:  # noqa: ARG002 of the port
        """Never."""
        self.asked += 1
        raise self.error


@pytest.mark.parametrize(
    ("error", "more"), [(ControlPlaneUnavailable("away"), True), (ConfigurationError("no right"), False)]
)
def test_without_the_record_it_goes_on_by_itself_and_says_so_once(
    caplog: pytest.LogCaptureFixture, error: ProcessManagerError, *, more: bool
) -> None:
    now = [0.0]
    control = Away(InMemoryDatabase())
    control.error = error
    limiter = RateLimiter({Call.RUN_NOW: 20.0}, lambda: now[0], shares=True)
    budget = SharedBudget(control, limiter, lambda: "w")
    started = 0
    while now[0] < 20.0:
        budget.take_part({Call.RUN_NOW: 50})
        while limiter.delay(Call.RUN_NOW) <= 0:
            limiter.sent(limiter.take(Call.RUN_NOW))
            started += 1
        now[0] += 0.01
    budget.leave()
    assert started >= 20.0 * 20.0 / 1.08
    assert control.asked == (1 if not more else pytest.approx(5, abs=1))
    (record,) = [r for r in caplog.records if r.getMessage() == "budget not shared"]
    assert record.levelno == logging.WARNING
    assert record.__dict__["fields"] == {"error": str(error)}


def test_two_dispatches_say_that_they_share(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    now = [0.0]
    database = InMemoryDatabase(lambda: now[0])
    limiters = [RateLimiter({Call.RUN_NOW: 20.0}, lambda: now[0], shares=True) for _ in range(2)]
    budgets = [SharedBudget(InMemoryControlPlane(database), limiter, lambda: "w") for limiter in limiters]
    throttled = False
    while now[0] < 4.0:
        for limiter, budget in zip(limiters, budgets, strict=True):
            budget.take_part({Call.RUN_NOW: 50})
            while limiter.delay(Call.RUN_NOW) <= 0:
                start = limiter.take(Call.RUN_NOW)
                limiter.sent(start)
                if now[0] > 2.0 and not throttled:
                    throttled = bool(limiter.throttle(Call.RUN_NOW, 1.0, start))
        now[0] += 0.01
    said = [(r.getMessage(), r.__dict__["fields"]) for r in caplog.records]
    assert said.count(("budget shared", {"others": 1})) == 2
    ((_, about),) = [each for each in said if each[0] == "throttled elsewhere"]
    assert about["call"] == "run-now"
    assert about["pause"] == pytest.approx(0.9, abs=0.3)
    assert about["rate"] < 20


def test_each_workspace_has_a_budget_of_its_own() -> None:
    database = InMemoryDatabase(lambda: 7.0)
    for run_id in (1, 2):
        database.add(run_id)
    settings = replace(Settings(), call_backoff_seconds=0.0, settle_seconds=0.0)
    runs = InMemoryRuns()
    assert Dispatch(InMemoryControlPlane(database, settings), runs, settings).run().scheduled == 2
    assert list(database.budgets) == [runs.workspace]
    assert len(json.loads(database.budgets[runs.workspace])["calls"]["run-now"]["starts"]) == 2
