"""A history and a search of several pages: each page is a call, paced, and the dispatch may end between two of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime

import pytest

from pm_dagster.config.settings import Settings
from pm_dagster.dispatch.in_doubt import intent_committed
from pm_dagster.dispatch.model import Call, MorePages, Outcome, RunSnapshot, T
from pm_dagster.dispatch.report import Report
from pm_dagster.dispatch.service import Dispatch
from pm_dagster.dispatch.waiting_job import sort_rows
from pm_dagster.errors import ProcessManagerError, Refused, Throttled, WorkspaceUnavailable
from pm_dagster_tests.dispatch.test_dispatch_pass import _Clock
from pm_dagster_tests.fakes.control_plane import InMemoryControlPlane, InMemoryDatabase
from pm_dagster_tests.fakes.runs import InMemoryRuns

SETTINGS = replace(Settings(), call_backoff_seconds=0.0, settle_seconds=0.0, rehearse=False)


class PagedRuns(InMemoryRuns):
    """Every history and every search has so many pages; ``asked`` has page and moment of each call for one."""

    def __init__(self, pages: int, clock: _Clock) -> None:
        super().__init__()
        self.pages, self.clock = pages, clock
        self.asked: list[tuple[int, float]] = []
        self.before: Callable[[int], None] = lambda _number: None

    def look_up(self, run_id: int) -> RunSnapshot | MorePages[RunSnapshot]:  # type: ignore[override]
        """runs/get, page by page."""
        return self._page(1, lambda: InMemoryRuns.look_up(self, run_id))

    def find_started(  # type: ignore[override]
        self, job_id: int, since: datetime, parameters: Mapping[str, str]
    ) -> list[int] | MorePages[list[int]]:
        """runs/list, page by page."""
        return self._page(1, lambda: InMemoryRuns.find_started(self, job_id, since, parameters))

    def _page(self, number: int, last: Callable[[], T]) -> T | MorePages[T]:
        self.asked.append((number, self.clock.now))
        self.before(number)
        return MorePages(lambda: self._page(number + 1, last)) if number < self.pages else last()

    def failing(self, number: int, *errors: ProcessManagerError) -> None:
        """Let the page of this number fail, once with each error."""
        left = list(errors)

        def before(asked: int) -> None:
            if asked == number and left:
                raise left.pop(0)

        self.before = before


class Stage:
    """Repairs of runs whose history has several pages."""

    def __init__(self, rows: int, pages: int) -> None:
        self.clock = _Clock(0.0)
        self.runs = PagedRuns(pages, self.clock)
        self.database = InMemoryDatabase()
        for number in range(1, rows + 1):
            self.database.add(number, previous_run_id=self.runs.failed_run())

    def dispatch(self, settings: Settings = SETTINGS) -> Report:
        """One dispatch whose time passes when it waits."""
        control = InMemoryControlPlane(self.database, settings)
        try:
            return Dispatch(control, self.runs, settings, clock=self.clock, stop=self.clock).run()
        finally:
            control.end()

    @property
    def pages(self) -> list[int]:
        """The pages that were asked for, in their order."""
        return [number for number, _ in self.runs.asked]


def most_in_a_second(stage: Stage) -> int:
    moments = [moment for _, moment in stage.runs.asked]
    return max(sum(start <= moment < start + 1.0 - 1e-9 for moment in moments) for start in moments)


def test_the_pages_of_histories_keep_to_the_rate() -> None:
    stage = Stage(rows=10, pages=12)
    report = stage.dispatch(replace(SETTINGS, rate_get_run=20.0, rate_repair=0.0))
    assert [row.outcome for row in report.rows] == [Outcome.ACCEPTED] * 10
    assert sorted(stage.pages) == sorted(list(range(1, 13)) * 10)
    assert most_in_a_second(stage) <= 20
    assert report.calls == 130


def test_the_pages_of_searches_keep_to_the_rate() -> None:
    stage = Stage(rows=0, pages=9)
    for number in range(1, 11):
        stage.database.add(number)
    first = InMemoryControlPlane(stage.database, SETTINGS)
    entries = first.claim(sort_rows(first.waiting(100))[0])
    first.intend([intent_committed(entry) for entry in entries])
    first.end()
    for row in stage.database.rows.values():
        row.status = "CANCELED"
    stage.dispatch(replace(SETTINGS, rate_get_run=10.0))
    assert sorted(stage.pages) == sorted(list(range(1, 10)) * 10)
    assert most_in_a_second(stage) <= 10


def test_one_line_of_history_for_a_reading_of_many_pages() -> None:
    stage = Stage(rows=1, pages=5)
    stage.dispatch()
    record = stage.database.newest(1)
    assert record is not None
    assert [event.call for event in record.events if event.kind == "answer"] == [Call.GET_RUN, Call.REPAIR]


def test_a_page_that_is_throttled_is_asked_for_again_after_the_pause() -> None:
    stage = Stage(rows=1, pages=4)
    stage.runs.failing(3, Throttled("slow down", retry_after=7.0))
    (row,) = stage.dispatch().rows
    assert row.outcome is Outcome.ACCEPTED
    assert stage.pages == [1, 2, 3, 3, 4]
    assert stage.runs.asked[3][1] - stage.runs.asked[2][1] >= 7.0
    record = stage.database.newest(1)
    assert record is not None
    assert record.entry.attempts == 0


@pytest.mark.parametrize(
    "error", [WorkspaceUnavailable("HTTP 503", status=503), Refused("the token of the page expired", status=400)]
)
def test_after_another_failure_the_reading_begins_anew(error: ProcessManagerError) -> None:
    stage = Stage(rows=1, pages=4)
    stage.runs.failing(3, error)
    for _ in range(3):
        stage.dispatch()
    assert stage.database.statuses() == {1: "SCHEDULED"}
    assert stage.pages == [1, 2, 3, 1, 2, 3, 4]


def test_a_stop_request_ends_the_dispatch_between_two_pages() -> None:
    stage = Stage(rows=1, pages=6)
    stage.runs.before = lambda number: stage.clock.set() if number == 3 else None
    assert stage.dispatch().left == 1
    assert stage.pages == [1, 2, 3]
    assert stage.database.statuses() == {1: "WAITING"}
    stage.clock.clear()
    stage.runs.before = lambda _number: None
    assert stage.dispatch().scheduled == 1


def test_the_deadline_ends_the_dispatch_between_two_pages() -> None:
    stage = Stage(rows=1, pages=600)
    settings = replace(SETTINGS, deadline_seconds=10.0, rate_get_run=5.0)
    assert stage.dispatch(settings).left == 1
    assert stage.clock.now <= 11.0
    assert 40 <= len(stage.pages) <= math.ceil(5 * 11)
    assert stage.database.statuses() == {1: "WAITING"}
