"""The whole of it, as it is deployed: Dagster's own processes, a real Postgres, a workspace that speaks HTTP."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pm_dagster.orchestration import names
from pm_dagster.sandbox.processes import Children, answers, free_port
from pm_dagster_tests.ledger.postgres_control_table import eventually
from pm_dagster_tests.orchestration.deployment import MODULE, Deployment

_PATIENCE_SECONDS = 90.0
_PRODUCTION = Path(__file__).parents[2] / "deploy" / "dagster-production" / "workspace.yaml"


@pytest.mark.slow
def test_the_job_runs_from_the_command_line(deployment: Deployment) -> None:
    good, bad = deployment.add(), deployment.add(job_id=999_999)
    done = deployment.dagster("job", "execute", "-m", "pm_dagster.definitions", "-j", names.JOB)
    assert done.returncode == 0, done.stderr[-4000:]
    assert deployment.status(good)[0] == "SCHEDULED"
    assert deployment.status(good)[1] is not None
    assert deployment.status(bad)[0] == "FAILED"
    assert deployment.workspace.token not in done.stdout + done.stderr


@pytest.mark.slow
def test_a_signal_ends_the_dispatch_and_no_op_is_tried_again(deployment: Deployment) -> None:
    deployment.workspace.faults.add("run-now", "hang", seconds=3.0, count=1)
    run_id = deployment.add()
    command = [sys.executable, "-m", "dagster", "job", "execute", "-m", "pm_dagster.definitions", "-j", names.JOB]
    process = subprocess.Popen(command, env=deployment.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        eventually(
            lambda: bool(deployment.sql("SELECT 1 FROM process_manager.entry WHERE state = 'SENDING'")),
            "the call is under way",
        )
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=_PATIENCE_SECONDS)
    finally:
        process.kill()
        process.wait()
    assert process.returncode != 0
    assert b"STEP_UP_FOR_RETRY" not in output
    deployment.dagster("job", "execute", "-m", "pm_dagster.definitions", "-j", names.JOB)
    assert deployment.status(run_id)[0] == "SCHEDULED"
    assert len(deployment.workspace.state.runs()) == 1


@pytest.mark.slow
def test_a_row_is_scheduled_by_the_daemon_once_the_sensor_is_on(deployment: Deployment) -> None:
    started = deployment.dagster("sensor", "start", names.SENSOR, *MODULE)
    assert started.returncode == 0, started.stderr[-4000:]
    with deployment.daemon():
        run_id = deployment.add()
        end = time.monotonic() + _PATIENCE_SECONDS
        while deployment.status(run_id)[0] == "WAITING" and time.monotonic() < end:
            time.sleep(0.5)
        assert deployment.status(run_id)[0] == "SCHEDULED"


@pytest.mark.slow
def test_the_workspace_of_production_needs_one_code_server_and_keeps_the_sensor_on(
    deployment: Deployment, tmp_path: Path
) -> None:
    # Switched on with a code server of its own, as with the workspace.yaml at the top.
    started = deployment.dagster("sensor", "start", names.SENSOR, *MODULE)
    assert started.returncode == 0, started.stderr[-4000:]
    port = free_port(0)
    text = _PRODUCTION.read_text()
    assert "port: 4266" in text
    workspace = tmp_path / "workspace.yaml"
    workspace.write_text(text.replace("port: 4266", f"port: {port}"))
    serve = [sys.executable, "-m", "dagster", "api", "grpc", *MODULE, "-h", "127.0.0.1", "-p", str(port)]
    with Children(deployment.environment, tmp_path / "logs") as children:
        children.start("code-server", serve)
        eventually(lambda: answers(port), "the code server answers")
        with deployment.daemon("-w", str(workspace)) as daemon:
            run_id = deployment.add()
            end = time.monotonic() + _PATIENCE_SECONDS
            while deployment.status(run_id)[0] == "WAITING" and time.monotonic() < end:
                time.sleep(0.5)
            assert deployment.status(run_id)[0] == "SCHEDULED"
            assert _code_servers_in_group(daemon.pid) == []


def _code_servers_in_group(group: int) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat, command = (entry / "stat").read_text(), (entry / "cmdline").read_text().replace("\0", " ")
            except OSError:
                continue
            if int(stat.rpartition(")")[2].split()[2]) == group and " grpc " in command:
                found.append(command)
    return found
