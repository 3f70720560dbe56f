"""The workspace's memory: jobs, runs, idempotency tokens; every public method is atomic and brings time up to date.

Put here: looking up, starting, ending and deleting runs. Keep out: jobs (``job_book.py``), HTTP, the wire's shapes, the
rules of a repair (``repairs.py``) and the execution of tasks (``execution/``). The clock is given, so a test can make
time pass.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from pm_dagster.sandbox.workspace import attempts, idempotency, lifecycle, repairs
from pm_dagster.sandbox.workspace.attempts import RunRequest
from pm_dagster.sandbox.workspace.errors import missing
from pm_dagster.sandbox.workspace.execution import course
from pm_dagster.sandbox.workspace.execution.executor import Executor
from pm_dagster.sandbox.workspace.execution.outputs import LIMIT
from pm_dagster.sandbox.workspace.job_book import JobBook
from pm_dagster.sandbox.workspace.model import OUTCOMES, Attempt, Run
from pm_dagster.sandbox.workspace.repairs import RepairRequest
from pm_dagster.sandbox.workspace.store import StateFile
from pm_dagster.sandbox.workspace.switches import Switches


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
            key = idempotency.key_of(token, job_id, self.switches)
            known = idempotency.run_of(key, self._memory, self.switches)
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
            attempt = repairs.new_repair(request, run, job, self.switches, self._memory.new_id, full=full)
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
                course.conclude(run.last, "cancel" if run.last.life == "TERMINATING" else "lost", self.clock())
                self._memory.put_run(run)
                self._scheduler.release(run, self.clock())
