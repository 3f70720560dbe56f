"""Which run is whose: corrected rows, rows of one file, one earlier run for two rows, a run of another job.

Each over the real database and the local workspace, by an unmodified ``pm``.
"""

from __future__ import annotations

from typing import Any

import pytest

from pm_dagster_tests.cli.world import JOB, World

#: What was lost is asked about at once in the next pass.
_ONCE = {"PM_CALL_TRIES": "1", "PM_SETTLE_SECONDS": "0", "PM_CALL_BACKOFF_SECONDS": "0"}
_OTHER_JOB = 2002


def _lose(world: World, call: str, when: str, **more: str) -> None:
    """A pass in which the answers to a call are lost, after it took effect or before."""
    world.workspace.faults.add(call, "status", status=503, when=when, count=None)
    world.pm("dispatch", **{**_ONCE, **more})
    world.workspace.faults.clear()


def _row(world: World, run_id: int) -> tuple[str, int | None, str]:
    query = "SELECT run_sttus_name, wkf_job_run_id, coalesce(state_msg, '') FROM mm_run_plc WHERE run_id = %s"
    status, databricks_run_id, message = world.sql(query, (run_id,))[0]
    return str(status), databricks_run_id, str(message)


def _files(world: World) -> list[str]:
    return sorted(run.parameters["FILE_NAME"] for run in world.workspace.state.runs())


def _reasons(world: World, run_id: int) -> list[str]:
    generations: list[dict[str, Any]] = world.json("explain", str(run_id))["generations"]
    return [str(entry["reason"]) for entry in generations]


@pytest.mark.parametrize("when", ["after", "before"])
def test_a_corrected_file_is_what_runs_in_the_next_pass(world: World, when: str) -> None:
    (row,) = world.add()
    _lose(world, "run-now", when)
    world.sql("UPDATE mm_run_plc SET file_name = 'right.csv'")

    report = world.json("dispatch", **_ONCE)

    assert (report["scheduled"], report["new"]["accepted"], report["withdrawn"]) == (1, 1, 1)
    assert _files(world) == (["file.csv", "right.csv"] if when == "after" else ["right.csv"])
    status, run_id, message = _row(world, row)
    assert status == "SCHEDULED"
    assert world.workspace.state.run(run_id or 0).parameters["FILE_NAME"] == "right.csv"
    assert "FILE_NAME 'right.csv' instead of 'file.csv'" in message
    former, _ = _reasons(world, row)
    assert ("was started before the row was corrected" in former) == (when == "after")
    assert "right.csv" in world.pm("explain", str(row)).stdout
    assert world.json("dispatch")["read"] == 0


def test_a_corrected_job_is_what_runs_in_the_next_pass(world: World) -> None:
    world.workspace.state.add_job("other", job_id=_OTHER_JOB, seconds=30.0)
    (row,) = world.add()
    _lose(world, "run-now", "after")
    world.sql("UPDATE mm_run_plc SET wkf_job_id = %s", (_OTHER_JOB,))
    world.json("dispatch", **_ONCE)
    _, run_id, message = _row(world, row)
    assert world.workspace.state.run(run_id or 0).job_id == _OTHER_JOB
    assert f"job {_OTHER_JOB} instead of {JOB}" in message
    assert len(world.workspace.state.runs()) == 2


def test_a_corrected_earlier_run_is_not_set_back(world: World) -> None:
    (row,) = world.add_repairs(1)
    wrong = _row(world, row)[1]
    right = world.workspace.state.add_run(JOB).run_id
    _lose(world, "runs/repair", "after")
    world.sql("UPDATE mm_run_plc SET wkf_job_run_id = %s", (right,))
    world.json("dispatch", **_ONCE)
    status, run_id, message = _row(world, row)
    assert (status, run_id) == ("SCHEDULED", right)
    assert f"of run {wrong} was started before the row was corrected" in message
    attempts = {run.run_id: len(run.attempts) for run in world.workspace.state.runs()}
    assert (attempts[wrong or 0], attempts[right]) == (2, 2)


def test_a_corrected_parameter_waits_for_the_end_of_the_former_repair(world: World) -> None:
    """Both repairs are of one run: while it works with the former value, the row does not say SCHEDULED."""
    (row,) = world.add_repairs(1)
    earlier = _row(world, row)[1] or 0
    _lose(world, "runs/repair", "after")
    world.sql("UPDATE mm_run_plc SET file_name = 'right.csv'")
    report = world.json("dispatch", **_ONCE)
    assert (report["scheduled"], report["repair"]["deferred"]) == (0, 1)
    assert _row(world, row)[0] == "WAITING"
    assert "generation 1 of this row, from before it was corrected" in world.json("explain", str(row))["why"]
    world.workspace.state.finish(earlier, "fail")
    assert world.json("dispatch", **_ONCE)["repair"]["accepted"] == 1
    assert world.workspace.state.run(earlier).parameters["FILE_NAME"] == "right.csv"
    assert _row(world, row)[:2] == ("SCHEDULED", earlier)


def test_a_view_that_shows_another_value_each_time_runs_nothing_twice(world: World) -> None:
    world.sql(
        """CREATE VIEW moving AS SELECT run_id, wkf_job_id, wkf_job_run_id, cntrt_id,
           file_name || ' ' || clock_timestamp() AS file_name, run_sttus_name FROM mm_run_plc"""
    )
    moving = {"PM_WAIT_VIEW": "moving", "PM_COLUMN_ORDER": ""}
    world.add(2)
    _lose(world, "run-now", "after", **moving)
    assert world.json("dispatch", **_ONCE, **moving)["scheduled"] == 2
    assert world.runs_per_row() == [1, 1]


def test_two_rows_of_one_file_never_share_a_run(world: World) -> None:
    """Parameters that cannot tell the rows apart, one lost answer, one refusal."""
    same = {"PM_JOB_PARAMETERS": "FILE_NAME=file_name", **_ONCE}
    (first,) = world.add()
    _lose(world, "run-now", "before", **same)
    (second,) = world.add()
    error = {"status": 400, "code": "INVALID_PARAMETER_VALUE", "message": f"Job {JOB}: parameters not allowed."}
    world.workspace.faults.add("run-now", "status", when="before", **error)
    world.json("dispatch", **same, PM_CONCURRENCY="1")
    assert len(world.workspace.state.runs()) == 1
    rows = [_row(world, row) for row in (first, second)]
    assert sorted(status for status, _, _ in rows) in (["FAILED", "SCHEDULED"], ["SCHEDULED", "WAITING"])
    runs = [run_id for _, run_id, _ in rows if run_id is not None]
    assert len(runs) == len(set(runs)) == 1
    (warned,) = [c for c in world.json("doctor", **same)["checks"] if c["check"] == "job parameters"]
    assert warned["ok"]
    assert warned["found"].startswith("WARNING")
    assert not [c for c in world.json("doctor")["checks"] if "WARNING" in c["found"]]


def test_two_rows_of_one_earlier_run_take_turns(world: World) -> None:
    earlier = world.workspace.state.add_run(JOB).run_id
    first, second = (world.add(run=earlier)[0] for _ in range(2))
    report = world.json("dispatch", **_ONCE)
    assert (report["repair"]["accepted"], report["repair"]["deferred"], report["scheduled"]) == (1, 1, 1)
    rows = {row: _row(world, row)[0] for row in (first, second)}
    done = next(row for row, status in rows.items() if status == "SCHEDULED")
    other = first if done == second else second
    assert f"is under way for row {done} of public.mm_run_plc" in world.json("explain", str(other))["why"]

    world.workspace.state.finish(earlier, "succeed")
    assert world.json("dispatch", **_ONCE)["scheduled"] == 1

    status, run_id, message = _row(world, other)
    assert (status, run_id == earlier) == ("SCHEDULED", False)
    assert f"run {earlier} succeeded for row {done} of public.mm_run_plc" in message
    assert world.workspace.state.run(run_id or 0).parameters["RUN_ID"] == str(other)


def test_without_fresh_runs_the_other_row_is_told(world: World) -> None:
    (row,) = world.add()
    world.json("dispatch")
    run = _row(world, row)[1]
    world.workspace.state.finish(run or 0, "succeed")
    (other,) = world.add(run=run)
    world.json("dispatch", PM_MISSING_RUN="fail")
    status, _, message = _row(world, other)
    assert status == "FAILED"
    assert f"succeeded for row {row} of" in message


def test_a_run_of_another_job_is_repaired_and_told_with_its_own_link(world: World) -> None:
    """A job that was deployed anew has another id; the row names the new one, the run is of the old one."""
    world.workspace.state.add_job("as it was", job_id=_OTHER_JOB, seconds=30.0)
    earlier = world.workspace.state.add_run(_OTHER_JOB).run_id
    (row,) = world.add(run=earlier)
    world.json("dispatch")
    status, run_id, message = _row(world, row)
    assert (status, run_id) == ("SCHEDULED", earlier)
    assert f"the run is of job {_OTHER_JOB}, the row names job {JOB}" in message
    url = world.sql("SELECT run_page_url FROM mm_run_plc")[0][0]
    assert str(_OTHER_JOB) in url
    assert str(JOB) not in url
    assert f"the run is of job {_OTHER_JOB}" in world.json("explain", str(row))["why"]
