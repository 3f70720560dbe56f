"""Hostile answers in the middle of a pass: the row they are for is found out, the others go on, nothing runs twice."""

from __future__ import annotations

import pytest

from pm_dagster_tests.hostile.world import JOB, HostileWorld

_IDS = ['"7"', "7.5", "true", "null", "[7]", "9223372036854775808", "-1", "NaN", "1e400", '"\\ud800\\u0000"']


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_start_whose_answer_names_no_run(world: HostileWorld, when: str) -> None:
    for value in _IDS:
        body = f'{{"run_id": {value}}}'
        world.workspace.faults.add("run-now", "status", status=200, body=body, when=when)
        rows = [world.add() for _ in range(3)]
        world.dispatch()
        assert {world.status(row) for row in rows} == {"SCHEDULED"}, value
        assert [world.started(row) for row in rows] == [1, 1, 1], value


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_repair_whose_answer_names_no_repair(world: HostileWorld, when: str) -> None:
    for value in _IDS:
        run = world.workspace.state.add_run(JOB)
        row = world.add(run=run.run_id)
        body = f'{{"repair_id": {value}}}'
        world.workspace.faults.add("runs/repair", "status", status=200, body=body, when=when)
        world.dispatch()
        assert world.status(row) == "SCHEDULED", value
        assert len(run.attempts) == 2, value


def test_a_history_that_cannot_be_read_leaves_its_row_alone_and_the_others_go_on(world: HostileWorld) -> None:
    run = world.workspace.state.add_run(JOB)
    bad = world.add(run=run.run_id)
    for value in ('"state": null', '"state": {"life_cycle_state": "TERMINATED"}, "repair_history": [{"id": 1e30}]'):
        good = world.add()
        body = f'{{"run_id": {run.run_id}, {value}}}'
        world.workspace.faults.add("runs/get", "status", status=200, body=body, count=None)
        world.dispatch(call_tries=2)
        assert (world.status(bad), len(run.attempts)) == ("WAITING", 1)
        assert world.status(good) == "SCHEDULED"
        world.workspace.faults.clear()
    world.dispatch()
    assert (world.status(bad), len(run.attempts)) == ("SCHEDULED", 2)


def test_explain_tells_of_a_row_that_the_table_does_not_take(world: HostileWorld) -> None:
    row = world.add()
    world.sql("ALTER TABLE mm_run_plc ADD CHECK (run_sttus_name = 'WAITING')")
    world.dispatch()
    told = [event for event in world.events(row) if "not started: " in event]
    assert len(told) == 1
    assert "public.mm_run_plc does not take the row" in told[0]
    assert world.workspace.state.runs() == []
