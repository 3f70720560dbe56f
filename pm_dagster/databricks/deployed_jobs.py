"""The DeployedJobs port over the official SDK.

Works with databricks-sdk from 0.30 (API 2.1) to the newest (API 2.2): only what all know is used.
"""

from __future__ import annotations

from typing import Any

from databricks.sdk.service.jobs import BaseJob, RunOutput, RunTask

from pm_dagster.databricks import sdk_check
from pm_dagster.databricks.jobs_service import JobsService, identifier, snapshot
from pm_dagster.dispatch.model import Standing
from pm_dagster.launcher.deployed_job import DeployedJob, DeployedRun, TaskOutput, TaskRun

#: The most that a page may hold (https://docs.databricks.com/api/workspace/jobs/list).
_PAGE = 100


class SdkDeployedJobs(JobsService):
    """See ``pm_dagster.launcher.deployed_job.DeployedJobs``."""

    def rehearse(self) -> None:
        """See ``sdk_check``."""
        sdk_check.rehearse(
            (lambda: self.find_jobs("nightly"), [DeployedJob(sdk_check.JOB, "nightly", "somebody@example.com")]),
            (lambda: self.start(sdk_check.JOB, "token"), sdk_check.RUN),
            (lambda: self.look_up(sdk_check.RUN).state.standing, Standing.REPAIRABLE),
            (lambda: [(task.task_key, task.state.run_id) for task in self.look_up(sdk_check.RUN).tasks], [("load", 8)]),
            (lambda: self.active_runs(sdk_check.JOB), [sdk_check.RUN]),
            (lambda: self.output(sdk_check.TASK_RUN).logs, "done"),
            (lambda: self.cancel(sdk_check.RUN), None),
        )

    def find_jobs(self, name: str) -> list[DeployedJob]:
        """jobs/list with the name as filter, all pages."""

        def call() -> list[DeployedJob]:
            return [_deployed(job) for job in self._paged().list(name=name, limit=_PAGE)]

        return self._guarded(call)

    def start(self, job_id: int, idempotency_token: str) -> int:
        """run-now without parameters and without a word about the queue: both are as the job says."""

        def call() -> object:
            wait: Any = self._jobs.run_now(job_id, idempotency_token=idempotency_token)
            return wait.response.run_id

        return identifier(self._guarded(call), "run-now", "run_id")

    def look_up(self, run_id: int) -> DeployedRun:
        """runs/get, all pages."""
        pages = self._pages(run_id, include_history=False)
        first = pages[0]

        def call() -> DeployedRun:
            tasks = tuple(_task_run(task) for page in pages for task in page.tasks or [])
            return DeployedRun(snapshot(run_id, first), tasks, int(first.start_time or 0), int(first.end_time or 0))

        return self._guarded(call, answered=True)

    def active_runs(self, job_id: int) -> list[int]:
        """runs/list of what is active."""

        def call() -> list[int]:
            runs = self._paged().list_runs(job_id=job_id, active_only=True)
            return [run.run_id for run in runs if run.run_id]

        return self._guarded(call)

    def output(self, task_run_id: int) -> TaskOutput:
        """runs/get-output."""

        def call() -> TaskOutput:
            given: RunOutput = self._jobs.get_run_output(task_run_id)
            return TaskOutput(str(given.logs or ""), str(given.error or ""), bool(given.logs_truncated))

        return self._guarded(call)

    def cancel(self, run_id: int) -> None:
        """runs/cancel."""
        self._guarded(lambda: self._jobs.cancel_run(run_id))


def _deployed(job: BaseJob) -> DeployedJob:
    name = job.settings.name if job.settings else None
    return DeployedJob(identifier(job.job_id, "jobs/list", "job_id"), name or "", job.creator_user_name or "")


def _task_run(task: RunTask) -> TaskRun:
    return TaskRun(
        task_key=str(task.task_key),
        state=snapshot(identifier(task.run_id, "runs/get", "run_id of a task"), task),
        attempt_number=int(task.attempt_number or 0),
        start_ms=int(task.start_time or 0),
        end_ms=int(task.end_time or 0),
    )
