"""How programs are ended: time limits, cancelling, a workspace that stops or dies. No process is ever left."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from databricks.sdk.errors import ResourceDoesNotExist

from pm_dagster.sandbox.workspace import LocalWorkspace
from pm_dagster_tests.sandbox.deployed import Deployed, alive, result, until

# Says its process id and waits, at most as long as a test may take.
WAITS = "import os, time\nprint('pid', os.getpid())\ntime.sleep(120)\n"
LOST = "The local workspace ended while this run was under way, and its programs with it."


def waiting(deployed: Deployed, job_id: int) -> tuple[int, int]:
    """A run whose program waits, and the program's process."""
    run_id = deployed.start(job_id)
    return run_id, int(deployed.said(run_id, "pid"))


def test_cancel(deployed: Deployed, empty: LocalWorkspace) -> None:
    run_id, pid = waiting(deployed, deployed.job(WAITS))
    assert result(deployed.client.jobs.get_run(run_id))[0] == "RUNNING"
    deployed.client.jobs.cancel_run(run_id)
    deployed.client.jobs.cancel_run(run_id)
    run = deployed.ended(run_id)
    assert result(run) == ("TERMINATED", "CANCELED", "Run cancelled.")
    assert run.state
    assert run.state.user_cancelled_or_timedout
    assert run.tasks
    assert run.tasks[0].state
    assert run.tasks[0].state.result_state
    assert run.tasks[0].state.result_state.value == "CANCELED"
    assert deployed.output(run_id).logs == f"pid {pid}\n"
    assert not alive(pid)
    assert empty.log.count("runs/cancel", effect=True) == 1


@pytest.mark.parametrize("of", ["job", "task"])
def test_a_time_limit(deployed: Deployed, of: str) -> None:
    limit = {"timeout_seconds": 1}
    job_id = deployed.job(WAITS, **limit) if of == "job" else deployed.job(WAITS, task=limit)  # type: ignore[arg-type]  # settings
    run_id, pid = waiting(deployed, job_id)
    run = deployed.ended(run_id)
    assert result(run) == ("TERMINATED", "TIMEDOUT", "Timed out.")
    assert run.state
    assert run.state.user_cancelled_or_timedout
    assert not alive(pid)
    # The next one has its own time.
    assert result(deployed.ended(deployed.start(job_id)))[1] == "TIMEDOUT"


def test_no_time_limit(deployed: Deployed) -> None:
    run, _ = deployed.ran(deployed.job("", timeout_seconds=0, task={"timeout_seconds": 0}))
    assert result(run)[1] == "SUCCESS"


def test_a_flood_of_output_does_not_outlast_the_limit(deployed: Deployed) -> None:
    job_id = deployed.job("import os\nwhile True:\n    os.write(1, b'x' * 60_000)", timeout_seconds=1)
    run, output = deployed.ran(job_id)
    assert (result(run)[1], output.logs_truncated) == ("TIMEDOUT", True)


def test_a_program_may_put_its_things_in_order(deployed: Deployed) -> None:
    source = f"""
import os, signal, sys
def stop(*_):
    # Not print: the signal may come while the program prints.
    os.write(1, b"in order\\n")
    sys.exit(1)
signal.signal(signal.SIGTERM, stop)
{WAITS}"""
    run_id, pid = waiting(deployed, deployed.job(source))
    deployed.client.jobs.cancel_run(run_id)
    assert result(deployed.ended(run_id))[1] == "CANCELED"
    assert "in order\n" in (deployed.output(run_id).logs or "")
    assert not alive(pid)


STUBBORN = "import signal\nfor each in (15, 2, 1): signal.signal(each, signal.SIG_IGN)\n"
# Each starts a process that writes to the same output and says its number.
CHILD = "import os, signal, subprocess, sys\nchild = [sys.executable, '-c', 'import time; time.sleep(120)']\n"
FAMILIES = {
    "ignores SIGTERM": f"{STUBBORN}print('child', 0)\n{WAITS}",
    "has a child": f"{CHILD}print('child', subprocess.Popen(child).pid)\n{WAITS}",
    "has a child that ignores SIGTERM": f"{STUBBORN}{CHILD}print('child', subprocess.Popen(child).pid)\n{WAITS}",
    "stops itself and its supervisor": (
        f"{CHILD}print('child', 0)\nprint('pid', os.getpid())\nos.killpg(0, signal.SIGSTOP)\n"
    ),
}
# Only Linux lets the supervisor become the parent of what left its process group.
if sys.platform == "linux":
    FAMILIES["has a child in a session of its own"] = (
        f"{CHILD}print('child', subprocess.Popen(child, start_new_session=True).pid)\n{WAITS}"
    )
    FAMILIES["has a daemon"] = f"""
{CHILD}
if os.fork() == 0:
    os.setsid()
    print('child', subprocess.Popen(child).pid, flush=True)
    os._exit(0)
os.wait()
{WAITS}"""


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("how", ["cancel", "reset"])
def test_all_that_a_program_started_ends_with_it(
    deployed: Deployed, empty: LocalWorkspace, family: str, how: str
) -> None:
    empty.switches.set(kill_seconds=0.1)
    run_id, pid = waiting(deployed, deployed.job(FAMILIES[family]))
    child = int(deployed.said(run_id, "child"))
    if how == "cancel":
        deployed.client.jobs.cancel_run(run_id)
        assert result(deployed.ended(run_id))[1] == "CANCELED"
    else:
        empty.reset()
    assert not alive(pid)
    assert child == 0 or not alive(child)


@pytest.mark.parametrize("apart", [False] if sys.platform != "linux" else [False, True])
def test_what_a_program_leaves_behind_ends_with_it(deployed: Deployed, apart: bool) -> None:  # noqa: FBT001  # parameter
    """It holds neither the run, whose output it could still write, nor anything else."""
    source = f"{CHILD}print('child', subprocess.Popen(child, start_new_session={apart}).pid)"
    run_id = deployed.start(deployed.job(source))
    assert result(deployed.ended(run_id))[1] == "SUCCESS"
    assert not alive(int(deployed.said(run_id, "child")))


def test_reset(deployed: Deployed, empty: LocalWorkspace) -> None:
    run_id, pid = waiting(deployed, deployed.job(WAITS))
    task_run_id = (deployed.client.jobs.get_run(run_id).tasks or [])[0].run_id or 0
    empty.reset()
    assert not alive(pid)
    assert empty.state.runs() == []
    with pytest.raises(ResourceDoesNotExist):
        deployed.client.jobs.get_run_output(task_run_id)
    assert empty.state.output(task_run_id) == ("", False)
    assert result(deployed.ran(deployed.job("print(1)"))[0])[1] == "SUCCESS"


def test_a_run_that_vanishes(deployed: Deployed, empty: LocalWorkspace) -> None:
    job_id = deployed.job(WAITS)
    run_id, pid = waiting(deployed, job_id)
    empty.state.delete_run(run_id)
    until(lambda: not alive(pid), "its program is gone")
    # Its place is free again.
    assert waiting(deployed, job_id)[0] != run_id


def test_an_executing_run_is_not_finished_by_hand(deployed: Deployed, empty: LocalWorkspace) -> None:
    run_id, pid = waiting(deployed, deployed.job(WAITS))
    with pytest.raises(ValueError, match="executes"):
        empty.state.finish(run_id)
    assert alive(pid)


def test_stop_and_start(tmp_path: Path) -> None:
    """What ran is over when the workspace is there again, what waited for it runs, and outputs are kept."""
    file = tmp_path / "state.json"
    with LocalWorkspace(state_file=file) as workspace:
        deployed = Deployed(workspace.host, workspace.token)
        run, output = deployed.ran(deployed.job("print('kept')"))
        job_id = deployed.job(WAITS)
        run_id, pid = waiting(deployed, job_id)
        queued = deployed.start(job_id)
        workspace.stop()
        assert not alive(pid)
        assert workspace.state.run(queued).last.life == "QUEUED"
        workspace.start()
        assert result(deployed.ended(run_id)) == ("INTERNAL_ERROR", "FAILED", LOST)
        assert deployed.output(run_id).error == LOST
        pid = int(deployed.said(queued, "pid"))
    assert not alive(pid)
    with LocalWorkspace(workspace.token, state_file=file) as again:
        deployed = Deployed(again.host, again.token)
        assert result(deployed.ended(queued)) == ("INTERNAL_ERROR", "FAILED", LOST)
        assert deployed.output(queued).logs == f"pid {pid}\n"
        assert deployed.output(run.run_id or 0).logs == output.logs == "kept\n"
        again.state.delete_run(queued)
    assert oct((tmp_path / "state_data" / "outputs").stat().st_mode)[-3:] == "700"
    kept = list((tmp_path / "state_data" / "outputs").iterdir())
    assert min(each.read_text() for each in kept) == "kept\n"
    assert {oct(each.stat().st_mode)[-3:] for each in kept} == {"600"}
    assert len(kept) == 2


def test_runs_that_begin_before_the_workspace_answers() -> None:
    """They wait for it, because the program may need it."""
    workspace = LocalWorkspace()
    with workspace:
        deployed = Deployed(workspace.host, workspace.token)
        job_id = deployed.job("print('now')")
    run, _ = workspace.state.start_run(job_id)
    assert run.last.life == "PENDING"
    with workspace:
        assert result(deployed.ended(run.run_id))[1] == "SUCCESS"


@contextmanager
def a_process(folder: Path) -> Iterator[tuple[subprocess.Popen[str], Deployed]]:
    command = [sys.executable, "-m", "pm_dagster.sandbox.workspace", "--port", "0", "--state", str(folder / "state")]
    environment = {**os.environ, "PM_SANDBOX_TOKEN": "secret"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout
        yield process, Deployed(process.stdout.readline().split()[-1], "secret")
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("how", ["kill", "terminate"])
def test_no_program_outlives_the_sandboxs_process(tmp_path: Path, how: str) -> None:
    source = f"import os\nprint('home', os.environ['HOME'])\n{FAMILIES['has a child']}"
    with a_process(tmp_path) as (process, deployed):
        run_id, pid = waiting(deployed, deployed.job(source))
        child, home = int(deployed.said(run_id, "child")), Path(deployed.said(run_id, "home"))
        assert home.is_dir()
        (process.kill if how == "kill" else process.terminate)()
        process.wait(timeout=30)
        until(lambda: not alive(pid) and not alive(child), "its programs are gone")
        until(lambda: not home.parent.exists(), "their folder is gone")
    with a_process(tmp_path) as (_, deployed):
        assert result(deployed.ended(run_id)) == ("INTERNAL_ERROR", "FAILED", LOST)


def test_a_run_that_was_being_cancelled_when_the_sandbox_died(tmp_path: Path) -> None:
    with a_process(tmp_path) as (process, deployed):
        run_id, pid = waiting(deployed, deployed.job(STUBBORN + WAITS))
        deployed.client.jobs.cancel_run(run_id)
        assert result(deployed.client.jobs.get_run(run_id))[0] == "TERMINATING"
        process.kill()
        until(lambda: not alive(pid), "its program is gone")
    with a_process(tmp_path) as (_, deployed):
        assert result(deployed.ended(run_id)) == ("TERMINATED", "CANCELED", "Run cancelled.")
