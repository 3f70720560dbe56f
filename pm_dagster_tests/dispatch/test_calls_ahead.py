"""Calls that are submitted before a thread is free: they leave at once when one gets free, or they are withdrawn."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

import pytest

from pm_dagster.config.settings import Settings
from pm_dagster.dispatch.model import Call, Entry, EntryState
from pm_dagster.dispatch.ports import Change, Written
from pm_dagster.dispatch.service import Dispatch
from pm_dagster.dispatch.worker import Limits
from pm_dagster.errors import (
    AuthenticationFailed,
    Kind,
    ProcessManagerError,
    Refused,
    Throttled,
    WorkspaceUnavailable,
)
from pm_dagster_tests.dispatch.test_dispatch_pass import SETTINGS, Stage
from pm_dagster_tests.fakes.control_plane import InMemoryControlPlane, InMemoryDatabase
from pm_dagster_tests.fakes.runs import InMemoryRuns

TWO = replace(SETTINGS, concurrency=2, call_tries=2)
_LONGEST = 20.0


class Held(InMemoryRuns):
    """A workspace whose first two answers wait: the first for the second call, the second until it may go on."""

    def __init__(self) -> None:
        super().__init__()
        self.both = threading.Barrier(2)
        self.go_on = threading.Event()
        self.third = threading.Event()
        self.begun = 0
        self.first_says: ProcessManagerError | None = None
        self.second_says: ProcessManagerError | None = None
        self._order = threading.Lock()

    def start(self, job_id: int, parameters: Mapping[str, str], idempotency_token: str) -> int:
        """run-now."""
        with self._order:
            self.begun += 1
            number = self.begun
        if number > 2:
            self.third.set()
            return super().start(job_id, parameters, idempotency_token)
        first = self.both.wait(_LONGEST) == 0
        says = self.first_says if first else self.second_says
        if not first:
            assert self.go_on.wait(_LONGEST)
        if says is not None:
            raise says
        return super().start(job_id, parameters, idempotency_token)


class Watched(InMemoryControlPlane):
    """Tells what is about to be written."""

    def __init__(self, database: InMemoryDatabase, settings: Settings, look: Callable[[list[str], int], None]) -> None:
        super().__init__(database, settings)
        self._look = look

    def record_and_intend(self, changes: Sequence[Change], entries: Sequence[Entry]) -> Written:
        """Told before."""
        self._look([event.kind for change in changes for event in change.events], len(entries))
        return super().record_and_intend(changes, entries)


@pytest.fixture
def stage() -> Stage:
    made = Stage()
    made.runs = Held()
    for number in range(1, 6):
        made.database.add(number)
    return made


def _held(stage: Stage) -> Held:
    assert isinstance(stage.runs, Held)
    return stage.runs


def _told(stage: Stage) -> dict[int, list[str]]:
    """What was told of each row."""
    return {record.entry.run_id: [event.kind for event in record.events] for record in stage.database.ledger.values()}


def _states(stage: Stage) -> list[EntryState]:
    return [record.entry.state for record in stage.database.ledger.values()]


@pytest.mark.parametrize(("concurrency", "ahead"), [(1, 0), (2, 1), (4, 1), (8, 2), (16, 5), (32, 10), (1000, 333)])
def test_a_third_more_calls_are_submitted_than_there_are_threads(concurrency: int, ahead: int) -> None:
    assert Limits(concurrency, 0.0).ahead == ahead


def test_a_thread_that_gets_free_makes_the_next_call_while_the_deciding_thread_writes(stage: Stage) -> None:
    runs = _held(stage)
    intents: list[int] = []

    def look(kinds: list[str], intended: int) -> None:
        intents.append(intended)
        if kinds:
            # The answer of the first call is being written; the third has left already.
            assert runs.third.wait(_LONGEST)
            runs.go_on.set()

    report = Dispatch(Watched(stage.database, TWO, look), runs, TWO).run()
    assert intents[0] == 3
    assert report.scheduled == 5
    assert runs.count(Call.RUN_NOW) == 5


def test_answers_and_the_next_intents_are_one_write(stage: Stage) -> None:
    runs = _held(stage)
    runs.go_on.set()
    writes: list[tuple[bool, bool]] = []
    look = Watched(stage.database, TWO, lambda kinds, intended: writes.append((bool(kinds), intended > 0)))
    Dispatch(look, runs, TWO).run()
    assert writes[0] == (False, True)
    assert (True, True) in writes
    assert len(writes) <= 6


@pytest.mark.parametrize("way", ["credentials", "stop", "deadline", "broken off"])
def test_what_ends_the_sending_withdraws_the_calls_that_have_not_left(stage: Stage, way: str) -> None:
    runs, stop, now = _held(stage), threading.Event(), [1000.0]
    if way == "credentials":
        runs.first_says = AuthenticationFailed("no", status=401)

    class Ended(Watched):
        def heartbeat(self) -> None:
            if way == "stop":
                stop.set()
            if way == "deadline":
                now[0] += 10_000.0
            if way == "broken off":
                runs.go_on.set()
                raise KeyboardInterrupt

    def look(kinds: list[str], _intended: int) -> None:
        # Until then the second call is under way, and no thread but that of the first call is free.
        if "not sent" in kinds:
            runs.go_on.set()

    control = Ended(stage.database, TWO, look)
    dispatch = Dispatch(control, runs, TWO, stop=stop, clock=lambda: now[0])
    entries = dispatch.claim(dispatch.read()).new
    with suppress(KeyboardInterrupt, AuthenticationFailed):
        dispatch.send(entries)
    assert runs.count(Call.RUN_NOW) == (1 if way == "credentials" else 2)
    assert runs.begun == 2
    assert _told(stage)[3] == ["not sent"]
    third = stage.database.newest(3)
    assert third is not None
    assert (third.entry.state, third.entry.ambiguous) == (EntryState.CLAIMED, False)
    assert EntryState.SENDING not in _states(stage)
    control.end()
    # Whoever comes next takes them as rows of which nothing was sent.
    stage.runs = runs = Held()
    runs.go_on.set()
    stage.run()
    assert set(stage.database.statuses().values()) == {"SCHEDULED"}


def test_a_429_withdraws_the_calls_of_its_endpoint_and_they_are_made_after_the_pause(stage: Stage) -> None:
    runs = _held(stage)
    runs.first_says = Throttled("slow down", retry_after=0.2)

    def look(kinds: list[str], _intended: int) -> None:
        if "not sent" in kinds:
            assert not runs.third.is_set()
            runs.go_on.set()

    report = Dispatch(Watched(stage.database, TWO, look), runs, TWO).run()
    assert report.scheduled == 5
    assert report.throttled == 1
    assert "not sent" in _told(stage)[3]
    assert len(runs.runs) == 5
    assert all(record.entry.attempts == 0 for record in stage.database.ledger.values())


class Away(Held):
    """A workspace that answers none of the first three calls, and the fourth when it may."""

    def start(self, job_id: int, parameters: Mapping[str, str], idempotency_token: str) -> int:
        """run-now."""
        with self._order:
            self.begun += 1
            number = self.begun
        if number <= 3:
            raise WorkspaceUnavailable("away", maybe_applied=False)
        if number == 4:
            assert self.go_on.wait(_LONGEST)
        return InMemoryRuns.start(self, job_id, parameters, idempotency_token)


def test_a_circuit_breaker_that_opens_withdraws_them(stage: Stage) -> None:
    stage.runs = runs = Away()
    settings = replace(TWO, call_tries=2, call_backoff_seconds=0.5)

    def look(kinds: list[str], _intended: int) -> None:
        if "not sent" in kinds:
            # The thread that got free may have begun its next call, or found it withdrawn.
            assert runs.begun in (3, 4)
            runs.go_on.set()

    report = Dispatch(Watched(stage.database, settings, look), runs, settings).run()
    assert report.scheduled == 5
    told = [event for record in stage.database.ledger.values() for event in record.events if event.kind == "not sent"]
    assert {event.detail for event in told} == {"run-now had not left: a circuit breaker opened"}
    assert len(runs.runs) == 5


def test_a_refusal_of_one_row_holds_the_next_call_back_until_it_is_decided(stage: Stage) -> None:
    """It is not withdrawn: its intent stands, and it is made once."""
    runs = _held(stage)
    runs.first_says = Refused("not this one", status=400, kind=Kind.NAMED)
    decided = threading.Event()

    def look(kinds: list[str], _intended: int) -> None:
        if "answer" in kinds and not decided.is_set():
            assert not runs.third.is_set()
            decided.set()
            runs.go_on.set()

    report = Dispatch(Watched(stage.database, TWO, look), runs, TWO).run()
    assert decided.is_set()
    assert report.scheduled == 4
    assert all("not sent" not in kinds for kinds in _told(stage).values())
    assert len(runs.runs) == 4
