"""Each version of databricks-sdk: a whole dispatch, one refusal of each kind, every call, and one that does not fit."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pm_dagster_tests.cli.shell import JOB, UNKNOWN_JOB, Shell
from pm_dagster_tests.cluster.program import UNPACED, ClusterProgram, failure_line
from pm_dagster_tests.databricks.tiny_server import json_reply, tiny_server
from pm_dagster_tests.versions.conftest import FORBIDDEN
from pm_dagster_tests.versions.place import ROOT, folder, locked

pytestmark = pytest.mark.versions

_SETTINGS = {**UNPACED, "PM_SETTLE_SECONDS": "0", "PM_CALL_BACKOFF_SECONDS": "0"}


def _status(program: ClusterProgram, row: int) -> str:
    return str(program.sql("SELECT run_sttus_name FROM mm_run_plc WHERE run_id = %s", (row,))[0][0])


def _pm(program: ClusterProgram) -> Shell:
    """`pm` on the same database and workspace."""
    return Shell(program.database_url, program.workspace, program.settings)


def _message(program: ClusterProgram, row: int) -> str:
    return str(program.sql("SELECT state_msg FROM mm_run_plc WHERE run_id = %s", (row,))[0][0])


def test_a_whole_dispatch(program: ClusterProgram) -> None:
    """New runs, repairs, a run that is gone, answers that are lost; the database's URL from a secret scope."""
    program.workspace.secrets.put("scope", "database", program.database_url)
    new = program.add(30)
    repairs = [*program.add_repairs(6), *program.add_repairs(4, repairs=2)]
    gone = program.workspace.state.add_run(JOB).run_id
    program.workspace.state.delete_run(gone)
    fresh = program.add(run=gone)
    for call in ("run-now", "runs/repair"):
        program.workspace.faults.add(call, "reset", "after", count=2)
    program.workspace.faults.add("run-now", "status", status=429, headers={"Retry-After": "0"}, count=2, skip=5)

    report = program.numbers(PM_POSTGRES_URL="databricks-secret://scope/database", **_SETTINGS)

    assert program.statuses() == {"SCHEDULED": len(new) + len(repairs) + len(fresh)}
    assert report["scheduled"] == report["read"] == 41
    assert program.runs_per_row() == [1] * 31
    assert sum(len(run.attempts) - 1 for run in program.workspace.state.runs()) == 6 + 4 * 3


def test_one_refusal_of_each_kind(program: ClusterProgram) -> None:
    """Each stands between rows that are good, in one dispatch."""
    state = program.workspace.state
    first, forbidden, unknown, last = (program.add(job_id=job_id)[0] for job_id in (JOB, FORBIDDEN, UNKNOWN_JOB, JOB))
    under_way, never_repaired = state.start_run(JOB)[0].run_id, state.add_run(JOB).run_id
    active, refused = program.add(run=under_way)[0], program.add(run=never_repaired)[0]
    code, message = "INVALID_PARAMETER_VALUE", f"Run {never_repaired} cannot be repaired."
    match = str(never_repaired)
    program.workspace.faults.add(
        "runs/repair", "status", count=None, status=400, code=code, message=message, match=match
    )

    for _ in range(6):
        program.numbers(**_SETTINGS)
        if "WAITING" not in program.statuses():
            break

    assert [_status(program, row) for row in (first, last, active)] == ["SCHEDULED"] * 3
    assert [_status(program, row) for row in (forbidden, unknown, refused)] == ["FAILED"] * 3
    assert "403" in _message(program, forbidden)
    assert str(UNKNOWN_JOB) in _message(program, unknown)
    assert message in _message(program, refused)
    assert program.runs_per_row() == [1, 1]


def test_refusals_of_everybody(program: ClusterProgram) -> None:
    rows = program.add(3)
    assert "does not accept our credentials" in failure_line(program.run(DATABRICKS_TOKEN="wrong-token"))
    program.workspace.faults.add("run-now", "status", status=503, count=None)
    assert "HTTP 503" in failure_line(program.run(**_SETTINGS))
    program.workspace.faults.clear()
    assert program.statuses() == {"WAITING": len(rows)}
    program.numbers(**_SETTINGS)
    assert program.statuses() == {"SCHEDULED": len(rows)}
    assert program.runs_per_row() == [1] * len(rows)


@pytest.mark.parametrize("name", ["0.83", "newest"])
def test_our_own_calls_are_led_to_their_workspace(name: str) -> None:
    """On a host that serves several, the service classes name it by themselves."""
    program = (
        "import os; from pm_dagster.config.settings import Settings; from pm_dagster.databricks.sign_in import *;"
        "from pm_dagster.databricks.runs import SdkRuns;"
        "print(SdkRuns(signed_in(os.environ, Settings()), Settings()).check())"
    )
    with tiny_server() as server:
        server.replies(json_reply(userName="somebody"))
        variables = {"DATABRICKS_HOST": server.host, "DATABRICKS_TOKEN": "t0ken", "DATABRICKS_WORKSPACE_ID": "4711"}
        path = f"{folder(name)}{os.pathsep}{ROOT}"
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, **variables, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    assert (done.returncode, done.stdout.strip()) == (0, "somebody"), done.stderr
    # Nothing was asked but this: a token signs in without a question.
    (asked,) = server.asked
    sent = {name.lower(): value for name, value in asked.headers.items()}
    assert sent["x-databricks-org-id"] == sent["x-databricks-workspace-id"] == "4711"


def test_a_run_of_dagster_signs_in_without_the_services(version: str) -> None:
    """By copies of dagster-databricks' modules, also with versions that it does not allow itself."""
    program = (
        "import os, sys; from pm_dagster.config.settings import Settings;"
        "from pm_dagster.databricks.runs import SdkRuns;"
        "from pm_dagster.orchestration.databricks_client import workspace_config;"
        "print(SdkRuns(workspace_config(os.environ, Settings()), Settings()).check(), 'pyspark' in sys.modules)"
    )
    with tiny_server() as server:
        server.replies(json_reply(userName="somebody"))
        variables = {"DATABRICKS_HOST": server.host, "DATABRICKS_TOKEN": "t0ken"}
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, **variables, "PYTHONPATH": f"{folder(version)}{os.pathsep}{ROOT}"},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
    assert (done.returncode, done.stdout.strip()) == (0, "somebody False"), done.stderr
    # The newest asks the host about itself first.
    *_, asked = server.asked
    agent = {name.lower(): value for name, value in asked.headers.items()}["user-agent"]
    assert "dagster-databricks/" in agent
    assert f"databricks-sdk-py/{locked(version)}" in agent


def test_the_calls_about_the_cluster_job(program: ClusterProgram, version: str) -> None:
    command = [sys.executable, str(Path(__file__).with_name("calls.py")), str(ROOT), str(JOB)]
    done = subprocess.run(command, env=program.environment(), capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "version": locked(version),
        "job": JOB,
        "same": True,
        "active": True,
        "tasks": ["main"],
        "standing": ["active", "CANCELED"],
        "gone": True,
    }


@pytest.mark.parametrize("version", ["0.30", "newest"], indirect=True)
def test_one_that_asks_for_more_than_we_have(program: ClusterProgram, version: str, tmp_path: Path) -> None:
    """As 0.83 and later did: nothing is sent, nobody is blamed, the line and doctor say whose fault it is."""
    broken = shutil.copytree(folder(version), tmp_path / "sdk")
    file = broken / "databricks" / "sdk" / "service" / "jobs.py"
    text = file.read_text(encoding="utf-8")
    assert "self._api.do(" in text
    file.write_text(text.replace("self._api.do(", "self._api.session_of_tomorrow.do("), encoding="utf-8")
    row = program.add()[0]

    done = program.run(PYTHONPATH=str(broken))

    line = failure_line(done)
    assert f"databricks-sdk {locked(version)}" in line
    assert "session_of_tomorrow" in line
    assert program.workspace.log.entries() == []
    assert _status(program, row) == "WAITING"
    doctor = _pm(program).json_and_code(1, "doctor", PYTHONPATH=str(broken))
    (found,) = [check for check in doctor["checks"] if not check["ok"]]
    assert f"databricks-sdk {locked(version)}" in found["found"]
    assert "another version" in found["remedy"]
