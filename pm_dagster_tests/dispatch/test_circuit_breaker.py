"""The circuit breakers: when they open, what they let through, and when they close."""

from __future__ import annotations

import logging

import pytest

from pm_dagster.dispatch.circuit_breaker import BreakerState, CircuitBreaker
from pm_dagster.dispatch.rules import Outage
from pm_dagster.errors import ProcessManagerError, Refused, Throttled, WorkspaceUnavailable

AWAY = WorkspaceUnavailable("nobody there", maybe_applied=False)
GATEWAY = WorkspaceUnavailable("gateway", status=503)
BROKEN = WorkspaceUnavailable("internal error", status=500)


class Time:
    """A clock that a test turns."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        """Seconds."""
        return self.now


def heard(time: Time, *errors: ProcessManagerError | None, concurrency: int = 4) -> CircuitBreaker:
    """One that heard these errors, all at once."""
    made = CircuitBreaker(concurrency, 3, 1.0, time)
    for error in errors:
        made.note(error)
    return made


def test_as_long_as_some_are_answered_calls_go_on() -> None:
    assert heard(Time(), AWAY, AWAY, AWAY, None, AWAY).state is BreakerState.CLOSED


def test_it_opens_when_all_calls_in_flight_are_unanswered() -> None:
    made = heard(Time(), AWAY, GATEWAY, AWAY, AWAY)
    assert (made.state, made.delay) == (BreakerState.OPEN, 1.0)


def test_the_pauses_double_and_what_was_in_flight_counts_once() -> None:
    time = Time()
    made = heard(time, *[AWAY] * 9)
    pauses = []
    while made.outage is not Outage.CERTAIN:
        pauses.append(made.delay)
        time.now += made.delay
        assert made.state is BreakerState.HALF_OPEN
        made.note(AWAY)
    assert pauses == [1.0, 2.0, 4.0]


def test_any_answer_closes_it() -> None:
    for answer in (None, Refused("no", status=400), Throttled("slowly"), BROKEN):
        made = heard(Time(), *[AWAY] * 9, answer)
        assert (made.state, made.delay) == (BreakerState.CLOSED, 0.0)


def test_a_job_that_cannot_be_started_is_no_heard() -> None:
    made = heard(Time(), *[BROKEN] * 100)
    assert made.state is BreakerState.CLOSED
    assert made.outage is Outage.NONE


def test_one_row_alone_does_not_open_it() -> None:
    """With one call at a time, all tries of a row come in a row."""
    made = heard(Time(), None, AWAY, AWAY, AWAY, concurrency=1)
    assert made.state is BreakerState.CLOSED
    assert made.outage is Outage.NONE


def test_a_row_that_gives_up_is_enough_only_during_heard() -> None:
    assert heard(Time(), AWAY).outage is Outage.SUSPECTED
    assert heard(Time(), None, *[AWAY] * 4).outage is Outage.SUSPECTED
    assert heard(Time(), None, AWAY).outage is Outage.NONE


def test_the_kinds_without_an_answer_are_known_until_there_is_one() -> None:
    made = heard(Time())
    made.note(AWAY, ("run-now", 7))
    assert made.affected == {("run-now", 7)}
    made.note(None, ("run-now", 8))
    assert made.affected == set()


def test_a_new_stretch_remembers_the_outage_and_may_try_one_call_at_once() -> None:
    time = Time()
    made = heard(time, *[AWAY] * 9)
    while made.outage is not Outage.CERTAIN:
        time.now += made.delay
        made.note(AWAY)
    made.begin()
    assert (made.state, made.delay, made.outage) == (BreakerState.HALF_OPEN, 0.0, Outage.SUSPECTED)
    made.note(AWAY)
    assert (made.state, made.delay) == (BreakerState.OPEN, 2.0)
    made.begin()
    made.note(None)
    assert (made.state, made.outage) == (BreakerState.CLOSED, Outage.NONE)


def test_a_new_stretch_does_not_open_a_closed_breaker() -> None:
    made = heard(Time(), None, AWAY)
    made.begin()
    assert made.state is BreakerState.CLOSED


def test_each_change_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="pm_dagster.dispatch")
    made = heard(Time(), *[AWAY] * 4)
    made.begin()
    made.note(None)
    assert [(record.message, record.levelname) for record in caplog.records] == [
        ("circuit breaker opened", "WARNING"),
        ("circuit breaker half-open", "INFO"),
        ("circuit breaker closed", "INFO"),
    ]
    assert vars(caplog.records[0])["fields"] == {"unanswered": 4, "pause": 1.0, "error": "WorkspaceUnavailable"}
