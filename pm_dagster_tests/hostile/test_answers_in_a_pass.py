"""Hostile answers in the middle of a pass: the row they are for is found out, the others go on, nothing runs twice."""

from __future__ import annotations

import pytest

from pm_dagster_tests.hostile.deployment import JOB, HostileDeployment

_IDS = ['"7"', "7.5", "true", "null", "[7]", "9223372036854775808", "-1", "NaN", "1e400", '"\\ud800\\u0000"']


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_start_whose_answer_names_no_run(deployment: HostileDeployment, when: str) -> None:
    for value in _IDS:
        body = f'{{"run_id": {value}}}'
        deployment.workspace.faults.add("run-now", "status", status=200, body=body, when=when)
        rows = [deployment.add() for _ in range(3)]
        deployment.dispatch()
        assert {deployment.status(row) for row in rows} == {"SCHEDULED"}, value
        assert [deployment.started(row) for row in rows] == [1, 1, 1], value


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_repair_whose_answer_names_no_repair(deployment: HostileDeployment, when: str) -> None:
    for value in _IDS:
        run = deployment.workspace.state.add_run(JOB)
        row = deployment.add(run=run.run_id)
        body = f'{{"repair_id": {value}}}'
        deployment.workspace.faults.add("runs/repair", "status", status=200, body=body, when=when)
        deployment.dispatch()
        assert deployment.status(row) == "SCHEDULED", value
        assert len(run.attempts) == 2, value


def test_a_history_that_cannot_be_read_leaves_its_row_alone_and_the_others_go_on(deployment: HostileDeployment) -> None:
    run = deployment.workspace.state.add_run(JOB)
    bad = deployment.add(run=run.run_id)
    for value in ('"state": null', '"state": {"life_cycle_state": "TERMINATED"}, "repair_history": [{"id": 1e30}]'):
        good = deployment.add()
        body = f'{{"run_id": {run.run_id}, {value}}}'
        deployment.workspace.faults.add("runs/get", "status", status=200, body=body, count=None)
        deployment.dispatch(call_tries=2)
        assert (deployment.status(bad), len(run.attempts)) == ("WAITING", 1)
        assert deployment.status(good) == "SCHEDULED"
        deployment.workspace.faults.clear()
    deployment.dispatch()
    assert (deployment.status(bad), len(run.attempts)) == ("SCHEDULED", 2)


def test_explain_tells_of_a_row_that_the_table_does_not_take(deployment: HostileDeployment) -> None:
    row = deployment.add()
    deployment.sql("ALTER TABLE mm_run_plc ADD CHECK (run_sttus_name = 'WAITING')")
    deployment.dispatch()
    told = [event for event in deployment.events(row) if "not started: " in event]
    assert len(told) == 1
    assert "public.mm_run_plc does not take the row" in told[0]
    assert deployment.workspace.state.runs() == []
