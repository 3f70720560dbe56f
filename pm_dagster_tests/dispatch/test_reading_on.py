"""Rows that cannot be had keep none back: a dispatch reads on until it has its limit."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Collection, Sequence
from dataclasses import replace

import pytest

from pm_dagster.dispatch.batches import Claimed
from pm_dagster.dispatch.model import Call, Entry, EntryState, Outcome, RowOutcome
from pm_dagster.dispatch.ports import Closed
from pm_dagster.dispatch.service import Dispatch
from pm_dagster.dispatch.waiting_job import Branch, RawRow, WaitingJob
from pm_dagster.dispatch.worker import Sent
from pm_dagster.errors import ControlPlaneUnavailable
from pm_dagster_tests.dispatch.test_dispatch_pass import SETTINGS, Stage
from pm_dagster_tests.fakes.control_plane import InMemoryControlPlane


@pytest.fixture
def stage() -> Stage:
    return Stage()


def test_rows_that_cannot_be_had_keep_none_back(stage: Stage) -> None:
    for number in range(1, 8):
        stage.database.add(number, job_id=None if number == 3 else 7)
    stage.database.rows[1].locked = stage.database.rows[2].hidden = True
    report = stage.run(replace(SETTINGS, dispatch_limit=3))
    assert stage.database.statuses() == {
        1: "WAITING", 2: "WAITING", 3: "FAILED", 4: "SCHEDULED", 5: "SCHEDULED", 6: "SCHEDULED", 7: "WAITING",
    }  # fmt: skip
    assert (report.read, report.scheduled) == (6, 3)
    assert sorted(row.run_id or 0 for row in report.rows if row.outcome is Outcome.ACCEPTED) == [4, 5, 6]
    assert [(row.run_id, row.outcome) for row in report.unsent] == [(1, Outcome.LEFT), (2, Outcome.LEFT)]


def test_rows_that_were_read_elsewhere_keep_to_the_limit(stage: Stage) -> None:
    for number in range(1, 6):
        stage.database.add(number)
    dispatch = stage.dispatch()
    report = dispatch.run(2, dispatch.read(5))
    assert (report.read, report.scheduled) == (2, 2)


def test_rows_without_an_id_take_no_place_of_others(stage: Stage) -> None:
    stage.database.add(None)
    stage.database.add(1)
    report = stage.run(replace(SETTINGS, dispatch_limit=1))
    assert stage.database.rows[1].status == "SCHEDULED"
    assert [row.run_id for row in report.rows if row.outcome is Outcome.QUARANTINED] == [None]


def test_a_lock_that_is_gone_at_the_end_of_the_claim_costs_the_row_nothing(stage: Stage) -> None:
    """Who only looks at a row holds its lock for a moment, too."""
    stage.database.add(1)

    class Looked(InMemoryControlPlane):
        def claim(self, jobs: Sequence[WaitingJob]) -> list[Entry]:
            taken = super().claim(jobs)
            stage.database.rows[1].locked = False
            return taken

    stage.database.rows[1].locked = True
    dispatch = Dispatch(Looked(stage.database, SETTINGS), stage.runs, SETTINGS)
    assert dispatch.run().scheduled == 1


def test_a_dispatch_whose_rows_others_take_reads_on_until_none_is_left(stage: Stage) -> None:
    """Each read gives rows that another dispatch takes before we can; the last ones are to be had."""
    for number in range(1, 2501):
        stage.database.add(number)
    other = stage.dispatch().control
    outrun = [True]

    class Outrun(InMemoryControlPlane):
        def claim(self, jobs: Sequence[WaitingJob]) -> list[Entry]:
            outrun[0] = outrun[0] and jobs[-1].run_id <= 2400
            if outrun[0]:
                other.claim(jobs)
            return super().claim(jobs)

    report = Dispatch(Outrun(stage.database, SETTINGS), stage.runs, SETTINGS).run(120)
    assert report.scheduled > 80
    assert list(stage.database.statuses().values()).count("SCHEDULED") == report.scheduled
    assert stage.runs.count(Call.RUN_NOW) == report.scheduled


def test_rows_that_are_read_and_never_to_be_had_end_the_reading(stage: Stage) -> None:
    """A view that shows rows as free which no claim takes must not keep a dispatch for ever."""
    for number in range(1, 101):
        stage.database.add(number)
    reads: list[int] = []

    class Never(InMemoryControlPlane):
        def waiting(self, limit: int, seen: Collection[int] | None = None) -> list[RawRow]:
            reads.append(limit)
            return super().waiting(limit, seen)

        def claim(self, jobs: Sequence[WaitingJob]) -> list[Entry]:  # noqa: ARG002 of the port
            return []

    report = Dispatch(Never(stage.database, SETTINGS), stage.runs, SETTINGS).run(2)
    assert (report.read, report.scheduled, len(report.unsent)) == (100, 0, 100)
    assert len(reads) <= 12


def test_repairs_that_wait_for_their_rate_keep_back_no_new_run(stage: Stage) -> None:
    """Two thousand older rows are of the other branch, of which one call leaves in a thousand seconds."""
    for number in range(1, 2001):
        stage.database.add(number, previous_run_id=stage.runs.failed_run())
    for number in range(2001, 2101):
        stage.database.add(number)
    stop = threading.Event()
    new: list[int] = []

    def count(outcome: RowOutcome) -> None:
        new.append(outcome.entry.run_id)
        if len(new) == 100:
            stop.set()

    settings = replace(SETTINGS, rate_get_run=0.001, dispatch_limit=5000)
    report = stage.dispatch(settings, stop=stop, on_outcome=count).run()
    assert [stage.database.rows[number].status for number in range(2001, 2101)] == ["SCHEDULED"] * 100
    assert stage.database.statuses()[2000] == "WAITING"
    assert report.left > 1800
    claimed = [record for record in stage.database.ledger.values() if record.entry.branch is Branch.REPAIR]
    assert len(claimed) < 200


def test_the_oldest_rows_go_first_and_few_are_claimed_ahead(stage: Stage) -> None:
    for number in range(1, 1501):
        stage.database.add(number)
    ahead: list[int] = []

    def count(outcome: RowOutcome) -> None:
        sent = outcome.entry.run_id
        ahead.append(max(record.entry.run_id for record in stage.database.ledger.values()) - sent)

    settings = replace(SETTINGS, concurrency=4, dispatch_limit=1500)
    dispatch = stage.dispatch(settings, on_outcome=count)
    assert dispatch.run().scheduled == 1500
    assert ahead[0] < 40
    assert max(ahead) < 600
    started = [number for call, number in stage.runs.calls if call is Call.RUN_NOW]
    assert len(started) == 1500


def test_a_claim_while_sending_outlasts_a_restart_of_the_database(stage: Stage) -> None:
    for number in range(1, 101):
        stage.database.add(number)
    dispatch = stage.dispatch(replace(SETTINGS, concurrency=1))
    control = dispatch.control
    assert isinstance(control, InMemoryControlPlane)
    whole = control.claim

    def claim(jobs: Sequence[WaitingJob]) -> list[Entry]:
        entries = whole(jobs)
        control.faults["claim"] = [ControlPlaneUnavailable("restarting")]
        return entries

    control.claim = claim  # type: ignore[method-assign]
    assert dispatch.run().scheduled == 100
    assert stage.runs.count(Call.RUN_NOW) == 100


def test_rows_that_were_read_and_not_claimed_when_it_ends_are_left(stage: Stage) -> None:
    for number in range(1, 501):
        stage.database.add(number)
    stop = threading.Event()
    dispatch = stage.dispatch(replace(SETTINGS, concurrency=1), stop=stop, on_outcome=lambda _outcome: stop.set())
    report = dispatch.run()
    assert (report.read, report.left + report.scheduled) == (500, 500)
    assert len(report.rows) + len(report.unsent) == 500
    dispatch.control.end()
    assert list(stage.database.statuses().values()).count("WAITING") == 500 - report.scheduled
    assert stage.run().scheduled == 500 - report.scheduled


def test_a_pass_keeps_only_a_line_of_a_row_that_is_closed(stage: Stage) -> None:
    """The memory of a long pass: what is closed is not worked on any more."""
    for number in range(1, 601):
        stage.database.add(number)
    ticks = itertools.count()
    dispatch = stage.dispatch(replace(SETTINGS, concurrency=2), clock=lambda: next(ticks) / 50)
    most = [0]

    def count(_outcome: RowOutcome) -> None:
        most[0] = max(most[0], len(dispatch.working_on))

    dispatch._on_outcome = count
    assert dispatch.run().scheduled == 600
    assert most[0] < 300


def test_answers_of_an_earlier_dispatch_are_put_together_in_one_go(stage: Stage) -> None:
    """A list that was made anew for every closed row took minutes for a hundred thousand rows."""
    count = 30_000
    entries = [Entry(number, number, 1, Branch.NEW, EntryState.ACCEPTED, 7, None, {}, "") for number in range(count)]
    closed = [
        Closed(number, number, EntryState.SCHEDULED, Outcome.ACCEPTED, number, None, None, "", "SCHEDULED")
        for number in range(count)
    ]
    began = time.monotonic()
    report = stage.dispatch().report(Claimed(entries), Sent(), closed)
    assert time.monotonic() - began < 5
    assert len(report.rows) == count
