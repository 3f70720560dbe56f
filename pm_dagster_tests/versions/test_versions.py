"""Each version of databricks-sdk: a whole dispatch, one refusal of each kind, every call, and one that does not fit."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pm_dagster_tests.cli.world import JOB, UNKNOWN_JOB, World
from pm_dagster_tests.cluster.world import UNPACED, ClusterWorld, the_line
from pm_dagster_tests.databricks.tiny_server import json_reply, tiny_server
from pm_dagster_tests.versions.conftest import FORBIDDEN
from pm_dagster_tests.versions.place import ROOT, folder, locked

pytestmark = pytest.mark.versions

_SETTINGS = {**UNPACED, "PM_SETTLE_SECONDS": "0", "PM_CALL_BACKOFF_SECONDS": "0"}


def _status(world: ClusterWorld, row: int) -> str:
    return str(world.sql("SELECT run_sttus_name FROM mm_run_plc WHERE run_id = %s", (row,))[0][0])


def _pm(world: ClusterWorld) -> World:
    """The same world for the command line."""
    return World(world.database_url, world.workspace, world.settings)


def _message(world: ClusterWorld, row: int) -> str:
    return str(world.sql("SELECT state_msg FROM mm_run_plc WHERE run_id = %s", (row,))[0][0])


def test_a_whole_dispatch(world: ClusterWorld) -> None:
    """New runs, repairs, a run that is gone, answers that are lost; the database's URL from a secret scope."""
    world.workspace.secrets.put("scope", "database", world.database_url)
    new = world.add(30)
    repairs = [*world.add_repairs(6), *world.add_repairs(4, repairs=2)]
    gone = world.workspace.state.add_run(JOB).run_id
    world.workspace.state.delete_run(gone)
    fresh = world.add(run=gone)
    for call in ("run-now", "runs/repair"):
        world.workspace.faults.add(call, "reset", "after", count=2)
    world.workspace.faults.add("run-now", "status", status=429, headers={"Retry-After": "0"}, count=2, skip=5)

    report = world.numbers(PM_POSTGRES_URL="databricks-secret://scope/database", **_SETTINGS)

    assert world.statuses() == {"SCHEDULED": len(new) + len(repairs) + len(fresh)}
    assert report["scheduled"] == report["read"] == 41
    assert world.runs_per_row() == [1] * 31
    assert sum(len(run.attempts) - 1 for run in world.workspace.state.runs()) == 6 + 4 * 3


def test_one_refusal_of_each_kind(world: ClusterWorld) -> None:
    """Each stands between rows that are good, in one dispatch."""
    state = world.workspace.state
    first, forbidden, unknown, last = (world.add(job_id=job_id)[0] for job_id in (JOB, FORBIDDEN, UNKNOWN_JOB, JOB))
    under_way, never_repaired = state.start_run(JOB)[0].run_id, state.add_run(JOB).run_id
    active, refused = world.add(run=under_way)[0], world.add(run=never_repaired)[0]
    code, message = "INVALID_PARAMETER_VALUE", f"Run {never_repaired} cannot be repaired."
    match = str(never_repaired)
    world.workspace.faults.add("runs/repair", "status", count=None, status=400, code=code, message=message, match=match)

    for _ in range(6):
        world.numbers(**_SETTINGS)
        if "WAITING" not in world.statuses():
            break

    assert [_status(world, row) for row in (first, last, active)] == ["SCHEDULED"] * 3
    assert [_status(world, row) for row in (forbidden, unknown, refused)] == ["FAILED"] * 3
    assert "403" in _message(world, forbidden)
    assert str(UNKNOWN_JOB) in _message(world, unknown)
    assert message in _message(world, refused)
    assert world.runs_per_row() == [1, 1]


def test_refusals_of_everybody(world: ClusterWorld) -> None:
    rows = world.add(3)
    assert "does not accept our credentials" in the_line(world.enter(DATABRICKS_TOKEN="wrong-token"))
    world.workspace.faults.add("run-now", "status", status=503, count=None)
    assert "HTTP 503" in the_line(world.enter(**_SETTINGS))
    world.workspace.faults.clear()
    assert world.statuses() == {"WAITING": len(rows)}
    world.numbers(**_SETTINGS)
    assert world.statuses() == {"SCHEDULED": len(rows)}
    assert world.runs_per_row() == [1] * len(rows)


@pytest.mark.parametrize("name", ["0.83", "newest"])
def test_our_own_calls_are_led_to_their_workspace(name: str) -> None:
    """On a host that serves several, the service classes name it by themselves."""
    program = (
        "import os; from pm_dagster.config.settings import Settings; from pm_dagster.databricks.sign_in import *;"
        "from pm_dagster.databricks.runs import SdkRuns;"
        "print(SdkRuns(workspace_client(os.environ, Settings()), Settings()).check())"
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


def test_the_calls_about_the_cluster_job(world: ClusterWorld, version: str) -> None:
    command = [sys.executable, str(Path(__file__).with_name("calls.py")), str(ROOT), str(JOB)]
    done = subprocess.run(command, env=world.environment(), capture_output=True, text=True, check=False, timeout=60)
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
def test_one_that_asks_for_more_than_we_have(world: ClusterWorld, version: str, tmp_path: Path) -> None:
    """As 0.83 and later did: nothing is sent, nobody is blamed, the line and doctor say whose fault it is."""
    broken = shutil.copytree(folder(version), tmp_path / "sdk")
    file = broken / "databricks" / "sdk" / "service" / "jobs.py"
    text = file.read_text(encoding="utf-8")
    assert "self._api.do(" in text
    file.write_text(text.replace("self._api.do(", "self._api.session_of_tomorrow.do("), encoding="utf-8")
    row = world.add()[0]

    done = world.enter(PYTHONPATH=str(broken))

    line = the_line(done)
    assert f"databricks-sdk {locked(version)}" in line
    assert "session_of_tomorrow" in line
    assert world.workspace.log.entries() == []
    assert _status(world, row) == "WAITING"
    doctor = _pm(world).json_and_code(1, "doctor", PYTHONPATH=str(broken))
    (found,) = [check for check in doctor["checks"] if not check["ok"]]
    assert f"databricks-sdk {locked(version)}" in found["found"]
    assert "another version" in found["remedy"]
