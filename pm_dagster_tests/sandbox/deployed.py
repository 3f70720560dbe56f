"""Programs in a local workspace, as a developer has them: uploaded, defined as a job, run, all by the unmodified SDK.

Put here: what the tests of execution share. Keep out: assertions about one behaviour.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from databricks.sdk import WorkspaceClient
from databricks.sdk.core import Config
from databricks.sdk.service.compute import ClusterSpec
from databricks.sdk.service.jobs import JobCluster, QueueSettings, Run, RunOutput, SparkPythonTask, Task
from databricks.sdk.service.workspace import ImportFormat

HOME = "/Workspace/Users/sandbox@example.com"
_PATIENCE = 60.0


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait until something is so; a minute is for machines that are busy otherwise."""
    deadline = time.monotonic() + _PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.01)


def alive(pid: int) -> bool:
    """Whether a process runs; one that only nobody waited for does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/stat")
    try:
        return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Deployed:
    """A workspace seen by whoever deploys to it."""

    def __init__(self, host: str, token: str) -> None:
        self.client = WorkspaceClient(config=Config(host=host, token=token, auth_type="pat"))

    def upload(self, source: str, name: str = "program.py") -> str:
        """Put a file into the workspace and give its path."""
        path = f"{HOME}/{name}"
        self.client.workspace.upload(path, io.BytesIO(source.encode()), format=ImportFormat.RAW, overwrite=True)
        return path

    def job(
        self,
        source: str,
        arguments: Sequence[str] = (),
        variables: Mapping[str, str] | None = None,
        task: Mapping[str, Any] | None = None,
        **settings: Any,  # noqa: ANN401  # those of jobs/create
    ) -> int:
        """Define a job of one task, ``main``, that executes this source on a cluster with these variables."""
        main = self.task("main", source, arguments, job_cluster_key="small", **(task or {}))
        cluster = ClusterSpec(spark_version="16.4.x-scala2.12", spark_env_vars=dict(variables or {}))
        return self.jobs_of([main], job_clusters=[JobCluster("small", cluster)], **settings)

    def task(
        self,
        key: str,
        source: str,
        arguments: Sequence[str] = (),
        **settings: Any,  # noqa: ANN401  # those of a task
    ) -> Task:
        """A task that executes this source."""
        python = SparkPythonTask(python_file=self.upload(source, f"{key}.py"), parameters=list(arguments))
        return Task(task_key=key, spark_python_task=python, **settings)

    def jobs_of(self, tasks: list[Task], **settings: Any) -> int:  # noqa: ANN401  # those of jobs/create
        """Define a job."""
        return self.client.jobs.create(name="deployed", tasks=tasks, **settings).job_id or 0

    def start(self, job_id: int, *, queue: bool | None = None, **wanted: Any) -> int:  # noqa: ANN401  # of run-now
        """Start a run."""
        settings = None if queue is None else QueueSettings(enabled=queue)
        return int(self.client.jobs.run_now(job_id, queue=settings, **wanted).run_id)

    def ended(self, run_id: int) -> Run:
        """The run, once it is over."""
        until(lambda: bool(self.client.jobs.get_run(run_id).end_time), f"run {run_id} is over")
        return self.client.jobs.get_run(run_id)

    def ran(self, job_id: int, **wanted: Any) -> tuple[Run, RunOutput]:  # noqa: ANN401  # of run-now
        """Start a run of one task; the run once it is over, and the task's output."""
        run = self.ended(self.start(job_id, **wanted))
        return run, self.output(run.run_id or 0)

    def output(self, run_id: int, key: str | None = None) -> RunOutput:
        """The output of a run's latest task of this key, or of its latest."""
        tasks = [task for task in self.client.jobs.get_run(run_id).tasks or [] if key in (None, task.task_key)]
        return self.client.jobs.get_run_output(tasks[-1].run_id or 0)

    def said(self, run_id: int, begins: str) -> str:
        """The rest of the line of output that begins with this, once it is there."""

        def lines() -> list[str]:
            return (self.output(run_id).logs or "").splitlines(keepends=True)

        def found() -> list[str]:
            return [line[len(begins) :].strip() for line in lines() if line.startswith(begins) and line.endswith("\n")]

        until(lambda: bool(found()), f"run {run_id} says {begins!r}")
        return found()[0]


def result(run: Run) -> tuple[str, str | None, str]:
    """Life cycle state, result and message."""
    assert run.state
    assert run.state.life_cycle_state
    value = run.state.result_state.value if run.state.result_state else None
    return run.state.life_cycle_state.value, value, run.state.state_message or ""


def results(run: Run) -> dict[str, str | None]:
    """The result of each task, of its latest if it ran several times."""
    return {
        task.task_key: task.state.result_state.value if task.state and task.state.result_state else None
        for task in run.tasks or []
    }
