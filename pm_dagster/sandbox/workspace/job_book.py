"""The jobs of the workspace, and the lock that jobs and runs share.

Put here: looking up, defining, changing and deleting jobs. Keep out: runs (``state.py``), HTTP, the wire's shapes.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pm_dagster.sandbox.workspace.errors import ApiError, missing
from pm_dagster.sandbox.workspace.memory import Memory
from pm_dagster.sandbox.workspace.model import OUTCOMES, Job, Json, Run
from pm_dagster.sandbox.workspace.scheduler import Scheduler
from pm_dagster.sandbox.workspace.store import StateFile


class JobBook(ABC):
    """Jobs behind a lock; every public method is atomic and brings time up to date."""

    def __init__(self, clock: Callable[[], float], file: StateFile | None) -> None:
        self.clock = clock
        self._lock = threading.RLock()
        self._memory = Memory(file)
        self._scheduler = self._fresh_scheduler()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Several steps as one, at the present time."""
        with self._lock:
            self._scheduler.advance(self.clock())
            yield

    def add_job(
        self,
        name: str,
        job_id: int | None = None,
        outcome: str | list[str] = "succeed",
        seconds: float | None = 1.0,
        pending_seconds: float = 0.0,
        settings: Mapping[str, Any] | None = None,
        **more: object,
    ) -> Job:
        """Define a job with its script; ``more`` are further settings such as ``max_concurrent_runs`` or ``tasks``."""
        outcomes = [outcome] if isinstance(outcome, str) else list(outcome)
        if not outcomes or not set(outcomes) <= set(OUTCOMES):
            raise ValueError(f"outcome is one of {list(OUTCOMES)}")
        whole = {"name": name, **(settings or {}), **more}
        if isinstance(whole.get("queue"), bool):
            whole["queue"] = {"enabled": whole["queue"]}
        with self.locked():
            number = self._memory.new_id() if job_id is None else job_id
            job = Job(number, whole, self.clock(), outcomes, seconds, pending_seconds)
            self._memory.put_job(job)
            return job

    def create_job(self, settings: Json, *, queue_default: bool) -> Job:
        """Define a job as the API does: its tasks execute if they say what is to be executed."""
        with self.locked():
            number = self._memory.new_id()
            job = Job(number, settings, self.clock(), queue_default=queue_default, scripted=False)
            self._memory.put_job(job)
            return job

    def job(self, job_id: int, unknown_status: int = 400) -> Job:
        """The job, or the refusal that it does not exist."""
        with self._lock:
            self._check_permission(job_id)
            job = self._memory.jobs.get(job_id)
        if job is None:
            raise missing(f"Job {job_id} does not exist.", unknown_status)
        return job

    def job_of(self, run: Run) -> Job | None:
        """The run's job unless it was deleted."""
        with self._lock:
            return self._memory.jobs.get(run.job_id)

    def jobs(self) -> list[Job]:
        """All jobs, newest first."""
        with self._lock:
            return sorted(self._memory.jobs.values(), key=lambda job: (job.created, job.job_id), reverse=True)

    def change_job(self, job_id: int, settings: Json) -> None:
        """Replace the settings; active runs keep what they began with. Other tasks than before go by no script."""
        with self.locked():
            job = self.job(job_id)
            job.scripted = job.scripted and settings.get("tasks") == job.settings.get("tasks")
            job.settings = settings
            self._memory.put_job(job)
            self._scheduler.fill(job_id, self.clock())

    def delete_job(self, job_id: int) -> None:
        """Remove the job; its runs stay."""
        with self.locked():
            self.job(job_id)
            self._memory.drop_job(job_id)

    def forbid(self, job_id: int, *, forbidden: bool = True) -> None:
        """Take away (or give back) the permission on a job, whether it exists or not."""
        with self._lock:
            (self._memory.forbidden.add if forbidden else self._memory.forbidden.discard)(job_id)

    @abstractmethod
    def _execute(self, run: Run) -> None:
        """Begin to execute a run that was started."""

    def _fresh_scheduler(self) -> Scheduler:
        return Scheduler(self._limit_of, self._memory.put_run, self._execute)

    def _limit_of(self, job_id: int) -> int:
        job = self._memory.jobs.get(job_id)
        return 1 if job is None else job.max_concurrent_runs

    def _check_permission(self, job_id: int) -> None:
        if job_id in self._memory.forbidden:
            text = f"User sandbox does not have Manage Run or Owner or Admin permissions on job {job_id}"
            raise ApiError(403, "PERMISSION_DENIED", text)
