"""Rows that join while sending goes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pm_dagster.dispatch.model import Call, Work
from pm_dagster.dispatch.rules import first_step
from pm_dagster.dispatch.service import Dispatch
from pm_dagster.dispatch.waiting_job import sort_rows
from pm_dagster_tests.dispatch.test_dispatch_pass import Stage


class _OneByOne:
    """Claims a row each time that it is asked, until none waits."""

    def __init__(self, dispatch: Dispatch) -> None:
        self.dispatch = dispatch
        self.delay = 0.0
        self.waiting: list[tuple[int, int]] = []

    def take(self, waiting: int, ready: Callable[[Call], int], helps: Callable[[Work], bool]) -> Sequence[Work]:
        self.waiting.append((waiting, ready(Call.RUN_NOW)))
        jobs, _ = sort_rows(self.dispatch.read(1))
        entries = self.dispatch.control.claim(jobs)
        if not entries:
            self.delay = float("inf")
        works = [Work(entry, first_step(entry)) for entry in entries]
        assert all(helps(work) for work in works)
        return works


def test_rows_that_join_are_sent_like_those_of_the_beginning() -> None:
    stage = Stage()
    for number in range(1, 6):
        stage.database.add(number)
    dispatch = stage.dispatch()
    feed = _OneByOne(dispatch)
    sent = dispatch._work([], feed=feed)
    assert sorted(outcome.entry.run_id for outcome in sent.outcomes.values()) == [1, 2, 3, 4, 5]
    assert stage.runs.count(Call.RUN_NOW) == 5
    assert feed.waiting[:6] == [(0, 0)] * 6
