"""The state of the workspace: its jobs, its runs and its idempotency tokens.

Every public method of ``WorkspaceState`` is atomic and brings time up to date first.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from pm_dagster.sandbox.workspace import attempts, lifecycle
from pm_dagster.sandbox.workspace.attempts import RepairRequest, RunRequest
from pm_dagster.sandbox.workspace.errors import ApiError, missing
from pm_dagster.sandbox.workspace.execution.executor import Executor
from pm_dagster.sandbox.workspace.execution.outputs import LIMIT
from pm_dagster.sandbox.workspace.memory import Memory, StateFile
from pm_dagster.sandbox.workspace.model import OUTCOMES, Attempt, Job, Json, Run
from pm_dagster.sandbox.workspace.scheduler import Scheduler
from pm_dagster.sandbox.workspace.switches import Switches


def token_key(token: str | None, job_id: int, switches: Switches) -> str | None:
    """What the token is remembered under; None without a token."""
    if not token:
        return None
    within_job = switches.token_scope == "job"  # noqa: S105  # a choice, no secret
    return f"{job_id} {token}" if within_job else token


def run_of_token(key: str | None, memory: Memory, switches: Switches) -> Run | None:
    """The run that the key began, None if a new one may begin, or the refusal."""
    run_id = None if key is None else memory.tokens.get(key)
    if run_id is None:
        return None
    run = memory.runs.get(run_id)
    if run is not None:
        return run
    fate = switches.deleted_token
    if fate == "existing":
        return memory.gone.get(run_id)
    if fate == "new_run":
        return None
    raise ApiError(400, switches.deleted_token_code, f"Run {run_id} of this idempotency token was deleted.")


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


class WorkspaceState(JobBook):
    """Jobs and runs behind one lock. Without an executor, runs that would execute stay PENDING."""

    def __init__(
        self,
        switches: Switches | None = None,
        clock: Callable[[], float] = time.time,
        file: StateFile | None = None,
    ) -> None:
        super().__init__(clock, file)
        self.switches = switches or Switches()
        self._executor: Executor | None = None
        self._interrupted = False
        for run in self._memory.runs.values():
            if run.last.active:
                self._scheduler.adopt(run)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Several steps as one, at the present time."""
        with super().locked():
            if self._interrupted:
                self._interrupted = False
                self._settle_interrupted()
            yield

    def flush(self) -> None:
        """Write what changed to the state file, if there is one."""
        with self._lock:
            self._memory.flush()

    def reset(self) -> None:
        """Forget everything, and end what executes."""
        with self._lock:
            self._memory.clear()
            self._scheduler = self._fresh_scheduler()
        if self._executor is not None:
            # Not under the lock, which the executor's threads need for their end.
            self._executor.end_all(at_once=True)
            self._executor.outputs.clear()

    # ---- execution

    def execute_by(self, executor: Executor) -> None:
        """Give runs to an executor from now on."""
        self._executor = executor

    def open(self) -> None:
        """Let runs execute. Those that were under way when the workspace ended are ended at the first look."""
        if self._executor is not None:
            self._executor.open()
            self._interrupted = True

    def close(self) -> None:
        """End all programs, and let no run execute until ``open``; the runs stay as they are."""
        if self._executor is not None:
            self._executor.close()

    def output(self, task_run_id: int, most: int = LIMIT) -> tuple[str, bool]:
        """The last bytes that a task run wrote, as text, and whether something came before them."""
        return self._executor.outputs.read(task_run_id, most) if self._executor is not None else ("", False)

    # ---- runs

    def start_run(
        self,
        job_id: int,
        parameters: Mapping[str, str] | None = None,
        token: str | None = None,
        *,
        queue: bool | None = None,
        python_params: list[str] | None = None,
        only: Sequence[str] = (),
    ) -> tuple[Run, bool]:
        """A run of the job and whether it is new: a token that was used before gives the run it began."""
        with self.locked():
            key = token_key(token, job_id, self.switches)
            known = run_of_token(key, self._memory, self.switches)
            if known is not None:
                return known, False
            job = self.job(job_id)
            request = RunRequest(parameters or {}, python_params, only)
            run = attempts.new_run(job, request, self._memory.new_id, self.clock())
            self._memory.put_run(run)
            if key is not None:
                self._memory.put_token(key, run.run_id)
            self._scheduler.admit(run, self.clock(), may_queue=job.queue_enabled if queue is None else queue)
            return run, True

    def repair(self, request: RepairRequest) -> int:
        """Repair a run and give the repair's id, or refuse."""
        with self.locked():
            run = self.run(request.run_id)
            job = self._memory.jobs.get(run.job_id)
            full = self._scheduler.full(run.job_id)
            attempt = attempts.new_repair(request, run, job, self.switches, self._memory.new_id, full=full)
            run.attempts.append(attempt)
            run.parameters.update(request.parameters)
            if self.switches.repair_at_limit == "start":
                self._scheduler.start(run, self.clock())
            else:
                self._scheduler.admit(run, self.clock(), may_queue=True)
            self._memory.put_run(run)
            return attempt.repair_id or 0

    def run(self, run_id: int) -> Run:
        """The run as it is now, or the refusal that it does not exist; a task run's id finds nothing."""
        with self.locked():
            run = self._memory.runs.get(run_id)
            if run is None:
                raise missing(f"Run {run_id} does not exist.", self.switches.unknown_run_status)
            self._check_permission(run.job_id)
            return run

    def run_of_task(self, run_id: int) -> Run | None:
        """The job run that a task run belongs to."""
        with self.locked():
            return self._memory.runs.get(self._memory.task_runs.get(run_id, 0))

    def runs(self, job_id: int | None = None) -> list[Run]:
        """The runs of a job, or all; newest first."""
        with self.locked():
            found = [run for run in self._memory.runs.values() if job_id is None or run.job_id == job_id]
        return sorted(found, key=lambda run: (run.created, run.run_id), reverse=True)

    def cancel(self, run_id: int) -> bool:
        """Ask an active run to end; False when it had already."""
        with self.locked():
            run = self.run_of_task(run_id) or self.run(run_id)
            if not run.last.active or run.last.life == "TERMINATING":
                return False
            lifecycle.cancel(run.last, self.clock(), self.switches.cancel_seconds)
            self._scheduler.note(run)
            if self._executor is not None:
                self._executor.stop(run.run_id, "cancel")
            self._memory.put_run(run)
            return True

    def finish(self, run_id: int, outcome: str = "succeed") -> Run:
        """End an active run now, for scripts that hold their runs."""
        with self.locked():
            run = self.run(run_id)
            if outcome not in OUTCOMES or not run.last.active or run.last.executes:
                raise ValueError(f"run {run_id} is over, or executes, or outcome is not one of {list(OUTCOMES)}")
            lifecycle.finish(run.last, outcome, self.clock())
            self._memory.put_run(run)
            self._scheduler.release(run, self.clock())
            return run

    def add_run(
        self, job_id: int, run_id: int | None = None, outcome: str = "fail", repairs: int = 0, age: float = 60.0
    ) -> Run:
        """A run of the past that ended as told, ``age`` seconds ago, after so many repairs with the same end."""
        with self.locked():
            job = self.job(job_id)
            if run_id in self._memory.runs:
                raise ValueError(f"run {run_id} exists already")
            run = attempts.past_run(job, run_id, outcome, repairs, self._memory.new_id, self.clock() - age)
            self._memory.put_run(run)
            return run

    def delete_run(self, run_id: int) -> None:
        """Let a run vanish, as after 60 days; its idempotency token stays taken."""
        with self.locked():
            run = self.run(run_id)
            self._memory.drop_run(run)
            self._scheduler.release(run, self.clock())
            if self._executor is not None:
                self._executor.drop(run)

    # ---- inside

    def _execute(self, run: Run) -> None:
        if self._executor is not None:
            self._executor.launch(run, self._report)

    def _report(self, run: Run, attempt: Attempt, change: Callable[[float], None]) -> bool:
        with self.locked():
            kept = self._memory.runs.get(run.run_id) is run and attempt.active
            if kept:
                change(self.clock())
                self._memory.put_run(run)
                if attempt.end:
                    self._scheduler.release(run, self.clock())
                self._memory.flush()
            return kept

    def _settle_interrupted(self) -> None:
        for run in self._scheduler.executing():
            if run.last.life == "PENDING":
                self._execute(run)
            else:
                lifecycle.conclude(run.last, "cancel" if run.last.life == "TERMINATING" else "lost", self.clock())
                self._memory.put_run(run)
                self._scheduler.release(run, self.clock())
