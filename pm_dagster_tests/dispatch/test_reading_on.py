"""Rows that cannot be had keep none back: a dispatch reads on until it has its limit."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import replace

import pytest

from pm_dagster.dispatch.model import Entry, EntryState, Outcome
from pm_dagster.dispatch.ports import Closed
from pm_dagster.dispatch.service import Claimed, Dispatch
from pm_dagster.dispatch.waiting_job import Branch, RawRow, WaitingJob
from pm_dagster.dispatch.worker import Sent
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


def test_the_reading_on_is_bounded(stage: Stage) -> None:
    """Each read gives rows that another dispatch takes before we can."""
    for number in range(1, 101):
        stage.database.add(number)
    reads: list[int] = []

    class Outrun(InMemoryControlPlane):
        def waiting(self, limit: int, seen: Collection[int] | None = None) -> list[RawRow]:
            reads.append(limit)
            return super().waiting(limit, seen)

        def claim(self, jobs: Sequence[WaitingJob]) -> list[Entry]:  # noqa: ARG002 of the port
            return []

    Dispatch(Outrun(stage.database, SETTINGS), stage.runs, SETTINGS).run(2)
    assert len(reads) == 9


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
