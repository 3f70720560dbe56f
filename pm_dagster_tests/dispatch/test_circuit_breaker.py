"""A workspace that answers nobody is left alone; one call that fails is not a workspace that is away."""

from __future__ import annotations

from pm_dagster.dispatch.circuit_breaker import CircuitBreaker
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


def silence(time: Time, *errors: ProcessManagerError | None, concurrency: int = 4) -> CircuitBreaker:
    """One that heard these errors, all at once."""
    made = CircuitBreaker(concurrency, 3, 1.0, time)
    for error in errors:
        made.note(error)
    return made


def test_as_long_as_some_are_answered_calls_go_on() -> None:
    assert not silence(Time(), AWAY, AWAY, AWAY, None, AWAY).spell


def test_when_all_in_flight_meet_silence_calls_go_one_by_one() -> None:
    made = silence(Time(), AWAY, GATEWAY, AWAY, AWAY)
    assert (made.spell, made.delay) == (True, 1.0)


def test_the_pauses_double_and_what_was_in_flight_counts_once() -> None:
    time = Time()
    made = silence(time, *[AWAY] * 9)
    pauses = []
    while not made.lasting(row_gives_up=False):
        pauses.append(made.delay)
        time.now += made.delay
        made.note(AWAY)
    assert pauses == [1.0, 2.0, 4.0]


def test_any_answer_ends_the_spell() -> None:
    for answer in (None, Refused("no", status=400), Throttled("slowly"), BROKEN):
        made = silence(Time(), *[AWAY] * 9, answer)
        assert (made.spell, made.delay) == (False, 0.0)


def test_a_job_that_cannot_be_started_is_no_silence() -> None:
    made = silence(Time(), *[BROKEN] * 100)
    assert not made.spell
    assert not made.lasting(row_gives_up=True)


def test_one_row_alone_is_no_spell() -> None:
    """With one call at a time, all tries of a row come in a row."""
    made = silence(Time(), None, AWAY, AWAY, AWAY, concurrency=1)
    assert not made.spell
    assert not made.lasting(row_gives_up=True)


def test_a_row_that_gives_up_is_enough_only_during_silence() -> None:
    assert silence(Time(), AWAY).lasting(row_gives_up=True)
    assert silence(Time(), None, *[AWAY] * 4).lasting(row_gives_up=True)
    assert not silence(Time(), None, AWAY).lasting(row_gives_up=True)


def test_the_kinds_that_met_silence_are_known_until_an_answer() -> None:
    made = silence(Time())
    made.note(AWAY, ("run-now", 7))
    assert made.met == {("run-now", 7)}
    made.note(None, ("run-now", 8))
    assert made.met == set()
