"""Which run is whose: corrected rows, rows of one file, one earlier run for two rows, a run of another job.

Each over the real database and the local workspace, by an unmodified ``pm``.
"""

from __future__ import annotations

from typing import Any

import pytest

from pm_dagster_tests.cli.shell import JOB, Shell

#: What was lost is asked about at once in the next pass.
_ONCE = {"PM_CALL_TRIES": "1", "PM_SETTLE_SECONDS": "0", "PM_CALL_BACKOFF_SECONDS": "0"}
_OTHER_JOB = 2002


def _lose(shell: Shell, call: str, when: str, **more: str) -> None:
    """A pass in which the answers to a call are lost, after it took effect or before."""
    shell.workspace.faults.add(call, "status", status=503, when=when, count=None)
    shell.pm("dispatch", **{**_ONCE, **more})
    shell.workspace.faults.clear()


def _row(shell: Shell, run_id: int) -> tuple[str, int | None, str]:
    query = "SELECT run_sttus_name, wkf_job_run_id, coalesce(state_msg, '') FROM mm_run_plc WHERE run_id = %s"
    status, databricks_run_id, message = shell.sql(query, (run_id,))[0]
    return str(status), databricks_run_id, str(message)


def _files(shell: Shell) -> list[str]:
    return sorted(run.parameters["FILE_NAME"] for run in shell.workspace.state.runs())


def _reasons(shell: Shell, run_id: int) -> list[str]:
    generations: list[dict[str, Any]] = shell.json("explain", str(run_id))["generations"]
    return [str(entry["reason"]) for entry in generations]


@pytest.mark.parametrize("when", ["after", "before"])
def test_a_corrected_file_is_what_runs_in_the_next_pass(shell: Shell, when: str) -> None:
    (row,) = shell.add()
    _lose(shell, "run-now", when)
    shell.sql("UPDATE mm_run_plc SET file_name = 'right.csv'")

    report = shell.json("dispatch", **_ONCE)

    assert (report["scheduled"], report["new"]["accepted"], report["withdrawn"]) == (1, 1, 1)
    assert _files(shell) == (["file.csv", "right.csv"] if when == "after" else ["right.csv"])
    status, run_id, message = _row(shell, row)
    assert status == "SCHEDULED"
    assert shell.workspace.state.run(run_id or 0).parameters["FILE_NAME"] == "right.csv"
    assert "FILE_NAME 'right.csv' instead of 'file.csv'" in message
    former, _ = _reasons(shell, row)
    assert ("was started before the row was corrected" in former) == (when == "after")
    assert "right.csv" in shell.pm("explain", str(row)).stdout
    assert shell.json("dispatch")["read"] == 0


def test_a_corrected_job_is_what_runs_in_the_next_pass(shell: Shell) -> None:
    shell.workspace.state.add_job("other", job_id=_OTHER_JOB, seconds=30.0)
    (row,) = shell.add()
    _lose(shell, "run-now", "after")
    shell.sql("UPDATE mm_run_plc SET wkf_job_id = %s", (_OTHER_JOB,))
    shell.json("dispatch", **_ONCE)
    _, run_id, message = _row(shell, row)
    assert shell.workspace.state.run(run_id or 0).job_id == _OTHER_JOB
    assert f"job {_OTHER_JOB} instead of {JOB}" in message
    assert len(shell.workspace.state.runs()) == 2


def test_a_corrected_earlier_run_is_not_set_back(shell: Shell) -> None:
    (row,) = shell.add_repairs(1)
    wrong = _row(shell, row)[1]
    right = shell.workspace.state.add_run(JOB).run_id
    _lose(shell, "runs/repair", "after")
    shell.sql("UPDATE mm_run_plc SET wkf_job_run_id = %s", (right,))
    shell.json("dispatch", **_ONCE)
    status, run_id, message = _row(shell, row)
    assert (status, run_id) == ("SCHEDULED", right)
    assert f"of run {wrong} was started before the row was corrected" in message
    attempts = {run.run_id: len(run.attempts) for run in shell.workspace.state.runs()}
    assert (attempts[wrong or 0], attempts[right]) == (2, 2)


def test_a_corrected_parameter_waits_for_the_end_of_the_former_repair(shell: Shell) -> None:
    """Both repairs are of one run: while it works with the former value, the row does not say SCHEDULED."""
    (row,) = shell.add_repairs(1)
    earlier = _row(shell, row)[1] or 0
    _lose(shell, "runs/repair", "after")
    shell.sql("UPDATE mm_run_plc SET file_name = 'right.csv'")
    report = shell.json("dispatch", **_ONCE)
    assert (report["scheduled"], report["repair"]["deferred"]) == (0, 1)
    assert _row(shell, row)[0] == "WAITING"
    assert "generation 1 of this row, from before it was corrected" in shell.json("explain", str(row))["why"]
    shell.workspace.state.finish(earlier, "fail")
    assert shell.json("dispatch", **_ONCE)["repair"]["accepted"] == 1
    assert shell.workspace.state.run(earlier).parameters["FILE_NAME"] == "right.csv"
    assert _row(shell, row)[:2] == ("SCHEDULED", earlier)


def test_a_view_that_shows_another_value_each_time_runs_nothing_twice(shell: Shell) -> None:
    shell.sql(
        """CREATE VIEW moving AS SELECT run_id, wkf_job_id, wkf_job_run_id, cntrt_id,
           file_name || ' ' || clock_timestamp() AS file_name, run_sttus_name FROM mm_run_plc"""
    )
    moving = {"PM_WAIT_VIEW": "moving", "PM_COLUMN_ORDER": ""}
    shell.add(2)
    _lose(shell, "run-now", "after", **moving)
    assert shell.json("dispatch", **_ONCE, **moving)["scheduled"] == 2
    assert shell.runs_per_row() == [1, 1]


def test_two_rows_of_one_file_never_share_a_run(shell: Shell) -> None:
    """Parameters that cannot tell the rows apart, one lost answer, one refusal."""
    same = {"PM_JOB_PARAMETERS": "FILE_NAME=file_name", **_ONCE}
    (first,) = shell.add()
    _lose(shell, "run-now", "before", **same)
    (second,) = shell.add()
    error = {"status": 400, "code": "INVALID_PARAMETER_VALUE", "message": f"Job {JOB}: parameters not allowed."}
    shell.workspace.faults.add("run-now", "status", when="before", **error)
    shell.json("dispatch", **same, PM_CONCURRENCY="1")
    assert len(shell.workspace.state.runs()) == 1
    rows = [_row(shell, row) for row in (first, second)]
    assert sorted(status for status, _, _ in rows) in (["FAILED", "SCHEDULED"], ["SCHEDULED", "WAITING"])
    runs = [run_id for _, run_id, _ in rows if run_id is not None]
    assert len(runs) == len(set(runs)) == 1
    (warned,) = [c for c in shell.json("doctor", **same)["checks"] if c["check"] == "job parameters"]
    assert warned["ok"]
    assert warned["found"].startswith("WARNING")
    assert not [c for c in shell.json("doctor")["checks"] if "WARNING" in c["found"]]


def test_two_rows_of_one_earlier_run_take_turns(shell: Shell) -> None:
    earlier = shell.workspace.state.add_run(JOB).run_id
    first, second = (shell.add(run=earlier)[0] for _ in range(2))
    report = shell.json("dispatch", **_ONCE)
    assert (report["repair"]["accepted"], report["repair"]["deferred"], report["scheduled"]) == (1, 1, 1)
    rows = {row: _row(shell, row)[0] for row in (first, second)}
    done = next(row for row, status in rows.items() if status == "SCHEDULED")
    other = first if done == second else second
    assert f"is under way for row {done} of public.mm_run_plc" in shell.json("explain", str(other))["why"]

    shell.workspace.state.finish(earlier, "succeed")
    assert shell.json("dispatch", **_ONCE)["scheduled"] == 1

    status, run_id, message = _row(shell, other)
    assert (status, run_id == earlier) == ("SCHEDULED", False)
    assert f"run {earlier} succeeded for row {done} of public.mm_run_plc" in message
    assert shell.workspace.state.run(run_id or 0).parameters["RUN_ID"] == str(other)


def test_without_fresh_runs_the_other_row_is_told(shell: Shell) -> None:
    (row,) = shell.add()
    shell.json("dispatch")
    run = _row(shell, row)[1]
    shell.workspace.state.finish(run or 0, "succeed")
    (other,) = shell.add(run=run)
    shell.json("dispatch", PM_MISSING_RUN="fail")
    status, _, message = _row(shell, other)
    assert status == "FAILED"
    assert f"succeeded for row {row} of" in message


def test_a_run_of_another_job_is_repaired_and_told_with_its_own_link(shell: Shell) -> None:
    """A job that was deployed anew has another id; the row names the new one, the run is of the old one."""
    shell.workspace.state.add_job("as it was", job_id=_OTHER_JOB, seconds=30.0)
    earlier = shell.workspace.state.add_run(_OTHER_JOB).run_id
    (row,) = shell.add(run=earlier)
    shell.json("dispatch")
    status, run_id, message = _row(shell, row)
    assert (status, run_id) == ("SCHEDULED", earlier)
    assert f"the run is of job {_OTHER_JOB}, the row names job {JOB}" in message
    url = shell.sql("SELECT run_page_url FROM mm_run_plc")[0][0]
    assert str(_OTHER_JOB) in url
    assert str(JOB) not in url
    assert f"the run is of job {_OTHER_JOB}" in shell.json("explain", str(row))["why"]
