"""What the machine found, each as the shortest story that shows it.

One plain test for each hole that the machine found and that is closed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

import pytest

from pm_dagster.config.settings import Settings
from pm_dagster.dispatch.in_doubt import intent_committed
from pm_dagster.dispatch.model import Call, Entry, EntryState
from pm_dagster.dispatch.ports import Change, Written
from pm_dagster.dispatch.service import Dispatch
from pm_dagster.dispatch.waiting_job import sort_rows
from pm_dagster.errors import ProcessManagerError, Refused, Throttled, WorkspaceUnavailable
from pm_dagster_tests.fakes.control_plane import InMemoryControlPlane, InMemoryDatabase
from pm_dagster_tests.fakes.runs import Fault
from pm_dagster_tests.model.in_memory_harness import LaggingRuns

SETTINGS = Settings(
    rate_run_now=0, rate_repair=0, rate_get_run=0, call_backoff_seconds=0, settle_seconds=0, max_attempts=2
)
LOST = WorkspaceUnavailable("lost", status=502)
NO = Refused("no", status=400)
FORBIDDEN = Refused("no permission", status=403)
BUSY = Refused("busy", status=409)


class Story:
    """One database and one workspace."""

    def __init__(self) -> None:
        self.database = InMemoryDatabase()
        self.runs = LaggingRuns()

    def faults(self, call: Call, *errors: ProcessManagerError | None, after: bool = False) -> None:
        """What the next calls of a kind meet."""
        self.runs.faults.setdefault(call, []).extend(Fault(error, after_effect=after) for error in errors)

    def dispatch(self) -> None:
        """A whole pass."""
        control = InMemoryControlPlane(self.database, SETTINGS)
        Dispatch(control, self.runs, SETTINGS).run()
        control.end()

    def die_before_sending(self, *, fresh_run: bool = False) -> Entry:
        """A dispatch that dies between its intent and the call."""
        control = InMemoryControlPlane(self.database, SETTINGS)
        (entry,) = control.claim(sort_rows(control.waiting(10))[0])
        assert control.intend([intent_committed(entry, fresh_run=fresh_run)])
        control.end()
        return entry

    def entry(self) -> Entry:
        """The newest entry of row 1."""
        record = self.database.newest(1)
        assert record is not None
        return record.entry


@pytest.fixture
def story() -> Story:
    return Story()


def test_somebody_elses_repair_that_failed_is_not_taken_for_ours(story: Story) -> None:
    """Our repair is refused because of one the history did not show, and that is over: ours is still to be made."""
    run_id = story.runs.failed_run(repairs=1)
    story.runs.shown, story.runs.lagging_reads = {run_id: ()}, 1
    story.database.add(1, previous_run_id=run_id)
    story.dispatch()
    assert len(story.runs.runs[run_id].repairs) == 2
    assert story.runs.runs[run_id].result is None
    assert story.database.statuses() == {1: "SCHEDULED"}


def test_a_row_is_not_failed_while_its_repair_may_be_running(story: Story) -> None:
    """The repair's answer is lost, and the run may not be looked at for a while."""
    run_id = story.runs.failed_run()
    story.database.add(1, previous_run_id=run_id)
    story.faults(Call.REPAIR, LOST, after=True)
    story.faults(Call.GET_RUN, None, *[FORBIDDEN] * 6)
    for _ in range(3):
        story.dispatch()
        assert story.database.statuses() == {1: "WAITING"}
        assert story.entry().state is EntryState.SENDING
    story.dispatch()
    assert story.database.statuses() == {1: "SCHEDULED"}
    assert len(story.runs.runs[run_id].repairs) == 1


@pytest.mark.parametrize("call", [Call.RUN_NOW, Call.LIST_RUNS])
def test_a_row_is_not_failed_while_its_run_may_be_running(story: Story, call: Call) -> None:
    """run-now's answer is lost; then the job is busy for as often as may be, or the search is refused."""
    story.database.add(1)
    story.faults(Call.RUN_NOW, LOST, after=True)
    story.faults(Call.RUN_NOW, *([BUSY] * 2 if call is Call.RUN_NOW else [FORBIDDEN]))
    if call is Call.LIST_RUNS:
        story.faults(call, *[FORBIDDEN] * 3)
    for _ in range(4):
        story.dispatch()
        assert story.database.statuses()[1] in ("WAITING", "SCHEDULED")
    assert story.database.statuses() == {1: "SCHEDULED"}
    assert len(story.runs.runs) == 1


def test_nothing_is_started_for_a_row_that_left_waiting_and_whose_run_is_gone(story: Story) -> None:
    run_id = story.runs.failed_run()
    story.database.add(1, previous_run_id=run_id)
    story.die_before_sending()
    story.database.rows[1].status = "CANCELED"
    del story.runs.runs[run_id]
    story.dispatch()
    assert story.runs.runs == {}
    assert story.entry().state is EntryState.WITHDRAWN


def test_a_repair_that_may_have_been_made_is_not_made_again_as_a_new_run(story: Story) -> None:
    """Its answer was lost, its run ended and was deleted: only a person can know whether the work was done."""
    run_id = story.runs.failed_run()
    story.database.add(1, previous_run_id=run_id)
    story.die_before_sending()
    del story.runs.runs[run_id]
    story.dispatch()
    assert story.runs.runs == {}
    assert story.database.statuses() == {1: "FAILED"}
    assert "is not known" in story.database.rows[1].message


def test_the_run_of_an_earlier_generation_is_not_taken_for_this_ones(story: Story) -> None:
    """A row is given back within a minute; its new run is refused after a lost answer; the search finds the old one."""
    story.database.add(1)
    story.dispatch()
    (first,) = story.runs.runs
    story.runs.runs[first].life_cycle, story.runs.runs[first].result = "TERMINATED", "SUCCESS"
    row = story.database.rows[1]
    row.status, row.raw = "WAITING", replace(row.raw, previous_run_id=None)
    story.faults(Call.RUN_NOW, LOST, NO)
    story.dispatch()
    record = story.database.newest(1)
    assert record is not None
    assert record.entry.intent_at is not None
    assert story.runs.runs[first].started > record.entry.intent_at - timedelta(seconds=60)
    assert record.accepted_run_id is None
    assert story.database.statuses() == {1: "FAILED"}


@pytest.mark.parametrize("call", [Call.RUN_NOW, Call.REPAIR])
def test_a_row_that_left_waiting_while_it_was_throttled_is_not_sent(story: Story, call: Call) -> None:
    story.database.add(1, previous_run_id=story.runs.failed_run() if call is Call.REPAIR else None)
    before = len(story.runs.runs)
    story.faults(call, Throttled("slow", retry_after=0.0))
    control = InMemoryControlPlane(story.database, SETTINGS)

    write = control.record_and_intend

    def told(changes: Sequence[Change], entries: Sequence[Entry]) -> Written:
        if story.runs.count(call):
            story.database.rows[1].status = "CANCELED"
        return write(changes, entries)

    control.record_and_intend = told  # type: ignore[method-assign]  # the owner acts between two steps of the dispatch
    Dispatch(control, story.runs, SETTINGS).run()
    assert story.runs.count(call) == 1
    assert len(story.runs.runs) == before
    assert story.entry().state is EntryState.WITHDRAWN
