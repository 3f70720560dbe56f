"""The DeployedJobs port in memory: jobs, runs that go by a script, and faults before or after the effect."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pm_dagster.dispatch.model import RunSnapshot
from pm_dagster.errors import Refused
from pm_dagster.launcher.deployed_job import DeployedJob, DeployedRun, TaskOutput, TaskRun
from pm_dagster_tests.fakes.runs import Fault

NAME = "Process_Manager"
#: Life cycle state, result state.
State = tuple[str | None, str | None]
RUNNING: State = ("RUNNING", None)
SUCCESS: State = ("TERMINATED", "SUCCESS")
#: The shape of a run with a failed task; the task itself is TERMINATED.
FAILED: State = ("INTERNAL_ERROR", "FAILED")
SKIPPED: State = ("SKIPPED", "MAXIMUM_CONCURRENT_RUNS_REACHED")
CANCELED: State = ("TERMINATED", "CANCELED")
_OVER = ("TERMINATED", "SKIPPED", "INTERNAL_ERROR")
_START_MS = 1_760_000_000_000


@dataclass
class Job:
    """A job whose runs go through ``states``, one at each look, and stay in the last; it has room for one run."""

    job_id: int
    name: str = NAME
    creator: str = "deployer@example.com"
    states: Sequence[State] = (RUNNING,)
    message: str = ""
    output: TaskOutput = field(default_factory=TaskOutput)
    queue: bool = False


@dataclass
class Run:
    """A run; ``ahead`` are the states that are still to come."""

    run_id: int
    job: Job
    task_run_id: int
    ahead: list[State]

    @property
    def active(self) -> bool:
        """Whether it has not ended."""
        return self.ahead[0][0] not in _OVER


class InMemoryDeployedJobs:
    """See ``launcher.deployed_job.DeployedJobs``. ``calls`` is the log of what was asked, by the port's names."""

    def __init__(self, *jobs: Job) -> None:
        self.jobs = list(jobs)
        self.runs: dict[int, Run] = {}
        self.calls: list[str] = []
        self.faults: dict[str, list[Fault]] = {}
        #: Called with the name of each call when it has taken effect and before it is answered.
        self.on_call: Callable[[str], None] = lambda _name: None
        self._tokens: dict[str, int] = {}
        self._ids = itertools.count(2**53 + 1)

    def finish(self, run_id: int, state: State) -> None:
        """End a run now."""
        self.runs[run_id].ahead = [state]

    def find_jobs(self, name: str) -> list[DeployedJob]:
        """jobs/list."""
        self._begin("find_jobs")
        fits = [job for job in self.jobs if job.name.casefold() == name.casefold()]
        return [DeployedJob(job.job_id, job.name, job.creator) for job in fits]

    def start(self, job_id: int, idempotency_token: str) -> int:
        """run-now."""
        fault = self._begin("start")
        if idempotency_token not in self._tokens:
            job = next((job for job in self.jobs if job.job_id == job_id), None)
            if job is None:
                raise Refused(f"Job {job_id} does not exist.", status=400)
            self._tokens[idempotency_token] = self._new_run(job).run_id
        self._end("start", fault)
        return self._tokens[idempotency_token]

    def look_up(self, run_id: int) -> DeployedRun:
        """runs/get; time passes by being looked at."""
        self._begin("look_up")
        run = self._run(run_id)
        state, over = run.ahead[0], not run.active
        if len(run.ahead) > 1:
            run.ahead.pop(0)
        end = _START_MS + 90_000 if over else 0
        life = "TERMINATED" if state[0] == "INTERNAL_ERROR" and state[1] else state[0]
        start = 0 if state[0] in ("SKIPPED", "QUEUED") else _START_MS
        task = TaskRun("main", RunSnapshot(run.task_run_id, None, life, state[1]), 0, start, end)
        message = run.job.message
        return DeployedRun(RunSnapshot(run_id, run.job.job_id, *state, message=message), (task,), _START_MS, end)

    def active_runs(self, job_id: int) -> list[int]:
        """runs/list."""
        self._begin("active_runs")
        return [run.run_id for run in self.runs.values() if run.job.job_id == job_id and run.active][::-1]

    def output(self, task_run_id: int) -> TaskOutput:
        """runs/get-output."""
        self._begin("output")
        run = next((run for run in self.runs.values() if run.task_run_id == task_run_id), None)
        if run is None:
            raise Refused(f"Run {task_run_id} does not exist.", status=400, gone=True)
        return run.job.output

    def cancel(self, run_id: int) -> None:
        """runs/cancel."""
        fault = self._begin("cancel")
        run = self._run(run_id)
        if run.active:
            run.ahead = [("TERMINATING", None), CANCELED]
        self._end("cancel", fault)

    def page_url(self, job_id: int, run_id: int) -> str:
        """The link."""
        return f"https://workspace.example/jobs/{job_id}/runs/{run_id}"

    def scrub(self, text: str) -> str:
        """One word is secret here."""
        return text.replace("s3cret", "***")

    def _new_run(self, job: Job) -> Run:
        busy = any(run.active and run.job is job for run in self.runs.values())
        refused: list[State] = [("QUEUED", None)] if job.queue else [SKIPPED]
        run = Run(next(self._ids), job, next(self._ids), refused if busy else list(job.states))
        self.runs[run.run_id] = run
        return run

    def _run(self, run_id: int) -> Run:
        if run_id not in self.runs:
            raise Refused(f"Run {run_id} does not exist.", status=400, gone=True)
        return self.runs[run_id]

    def _begin(self, call: str) -> Fault | None:
        self.calls.append(call)
        waiting = self.faults.get(call)
        fault = waiting.pop(0) if waiting else None
        if fault is not None and fault.error is not None and not fault.after_effect:
            raise fault.error
        return fault

    def _end(self, call: str, fault: Fault | None) -> None:
        self.on_call(call)
        if fault is not None and fault.error is not None:
            raise fault.error
