"""A dispatch that sends both branches from one thread, as Dagster's ops do, is killed while both are under way."""

from __future__ import annotations

import signal

import pytest

from pm_dagster_tests.chaos.boundaries import Boundary, moment
from pm_dagster_tests.chaos.deployment import ChaosDeployment
from pm_dagster_tests.chaos.finishing import assert_clean, finish
from pm_dagster_tests.chaos.many import start_stepwise
from pm_dagster_tests.chaos.records import record

_ROWS = 4
_SENDING = "SELECT branch, count(*) FROM process_manager.entry WHERE state = 'SENDING' GROUP BY branch"
#: The call that the moment is about, and the one of the other branch, which is under way by then.
_MOMENTS = [
    (Boundary.AFTER_INTENT, "runs/repair", "run-now"),
    (Boundary.AFTER_REPLY, "runs/repair", "run-now"),
    (Boundary.AFTER_REPLY, "run-now", "runs/repair"),
    (Boundary.BEFORE_CLOSING, "run-now", "runs/repair"),
    (Boundary.AFTER_CLOSING, "run-now", "runs/repair"),
]


@pytest.mark.chaos
@pytest.mark.parametrize(("boundary", "call", "other"), _MOMENTS)
def test_killed_while_both_branches_are_under_way(
    chaos: ChaosDeployment, boundary: Boundary, call: str, other: str
) -> None:
    for _ in range(_ROWS):
        chaos.add()
        chaos.add_repair(repairs=1)
    # Those of the other branch take effect and are not answered before the end.
    chaos.workspace.faults.add(other, "hang", "after", seconds=15.0, drop=True, count=_ROWS)
    if call == "run-now":
        chaos.workspace.faults.add(call, "hang", "before", seconds=1.5, count=_ROWS)
    mark = moment(boundary, call)
    assert mark is not None
    doom = chaos.kill_at(mark)
    assert start_stepwise(chaos).wait() == -signal.SIGKILL
    assert doom.met == 1
    under_way = dict(chaos.sql(_SENDING))
    assert under_way["new" if other == "run-now" else "repair"] == _ROWS, "the other branch is under way"
    chaos.forget_the_dead()
    chaos.workspace.faults.clear()
    finish(chaos)
    assert set(chaos.statuses().values()) == {"SCHEDULED"}
    assert_clean(chaos, may_fail=())
    counts = chaos.verdict(may_fail=()).counts
    record("both branches", f"killed {boundary.value} of {call}", {**counts, "rows": 2 * _ROWS})
