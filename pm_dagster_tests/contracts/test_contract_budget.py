"""What every ControlPlane promises about the record that the dispatchers of a workspace share."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from pm_dagster.dispatch.ports import ControlPlane
from pm_dagster.errors import ControlPlaneUnavailable
from pm_dagster_tests.contracts.control_table import ControlTable

_WORKSPACE = "one.example"
_THREADS, _TIMES = 4, 25


class Kept:
    """A change that writes something and keeps what it was given."""

    def __init__(self, writes: dict[str, Any]) -> None:
        self.writes = writes
        self.told: list[dict[str, Any] | None] = []
        self.moments: list[float] = []

    def __call__(self, told: dict[str, Any] | None, now: float) -> dict[str, Any]:
        """Take what there was."""
        self.told.append(told)
        self.moments.append(now)
        return self.writes


def shared(control: ControlPlane, writes: dict[str, Any], workspace: str = _WORKSPACE) -> Kept:
    change = Kept(writes)
    assert control.share_budget(workspace, change)
    return change


def test_at_first_there_is_no_record(table: ControlTable) -> None:
    assert shared(table.dispatcher(), {"a": 1}).told == [None]


def test_what_one_writes_the_next_one_reads(table: ControlTable) -> None:
    written = {"form": 1, "moments": [1795622400.1234, 0.5], "none": None, "deep": {"é": [["x", True]]}}
    shared(table.dispatcher(), written)
    assert shared(table.dispatcher(), {}).told == [written]
    assert shared(table.dispatcher(), {}).told == [{}]


def test_each_workspace_has_its_own(table: ControlTable) -> None:
    control = table.dispatcher()
    shared(control, {"a": 1})
    assert shared(control, {"b": 2}, "two.example").told == [None]
    assert shared(control, {}).told == [{"a": 1}]


def test_the_clock_is_one_for_all_and_goes_on(table: ControlTable) -> None:
    first, second = table.dispatcher(), table.dispatcher()
    began = time.monotonic()
    moments = [moment for control in (first, second) * 3 for moment in shared(control, {}).moments]
    time.sleep(0.2)
    moments += shared(first, {}).moments
    assert moments == sorted(moments)
    assert 0.2 <= moments[-1] - moments[0] <= time.monotonic() - began


def test_a_change_that_fails_changes_nothing(table: ControlTable) -> None:
    control = table.dispatcher()
    shared(control, {"a": 1})

    def fail(told: dict[str, Any] | None, now: float) -> dict[str, Any]:
        raise ZeroDivisionError(str((told, now)))

    with pytest.raises(ZeroDivisionError):
        control.share_budget(_WORKSPACE, fail)
    assert shared(table.dispatcher(), {}).told == [{"a": 1}]
    assert shared(control, {}).told == [{}]


def test_one_after_the_other(table: ControlTable) -> None:
    """Each counts one up; nobody's count is lost."""
    controls = [table.dispatcher() for _ in range(_THREADS)]

    def count_up(control: ControlPlane) -> None:
        for _ in range(_TIMES):
            while not _counted(control):
                pass

    threads = [threading.Thread(target=count_up, args=(control,)) for control in controls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert shared(controls[0], {}).told == [{"count": _THREADS * _TIMES}]


def _counted(control: ControlPlane) -> bool:
    """Whether it was our turn in time."""
    try:
        return control.share_budget(_WORKSPACE, lambda told, _now: {"count": (told or {"count": 0})["count"] + 1})
    except ControlPlaneUnavailable:
        return False


def test_it_makes_nobody_a_dispatcher(table: ControlTable) -> None:
    control = table.dispatcher(actor="only paces")
    shared(control, {})
    assert table.dispatcher().signs_of_life(["only paces"]) == {}
