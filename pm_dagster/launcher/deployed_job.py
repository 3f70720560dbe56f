"""The deployed Databricks job that does a dispatch on a cluster: which one it is, and what the end of its run means.

The port to the workspace, the values that cross it, and the decisions that need no clock. ``launch`` starts, waits and
cancels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from pm_dagster.dispatch.model import RunSnapshot, Standing
from pm_dagster.errors import ConfigurationError

_LISTED = 20
_BUSY = ("MAXIMUM_CONCURRENT_RUNS_REACHED", "MAX_CONCURRENT_RUNS_EXCEEDED")


class End(StrEnum):
    """How a run ended, or why we stopped waiting for it. Only ``SUCCEEDED`` is a success."""

    SUCCEEDED = "succeeded"
    SUCCEEDED_WITH_FAILURES = "succeeded with failures"
    FAILED = "failed"
    TIMED_OUT = "timed out"
    CANCELED = "was cancelled"
    INTERNAL_ERROR = "could not be executed by the workspace"
    #: Another run of the job was active, and the job does not queue.
    SKIPPED = "was skipped because another run of the job was active"
    NEVER_RAN = "never ran"
    UNKNOWN = "ended in a state that Process Manager does not know"
    #: Our own deadline passed.
    OVERDUE = "did not end in time"
    #: The workspace no longer lets us see the run.
    LOST = "cannot be followed any more"


_BY_RESULT = {
    "SUCCESS": End.SUCCEEDED,
    "SUCCESS_WITH_FAILURES": End.SUCCEEDED_WITH_FAILURES,
    "FAILED": End.FAILED,
    "UPSTREAM_FAILED": End.FAILED,
    "TIMEDOUT": End.TIMED_OUT,
    "CANCELED": End.CANCELED,
    "UPSTREAM_CANCELED": End.CANCELED,
    "EXCLUDED": End.NEVER_RAN,
    "DISABLED": End.NEVER_RAN,
}
#: Only for a run without a result; each code names the same end.
_BY_CODE = {
    "SUCCESS": End.SUCCEEDED,
    "SUCCESS_WITH_FAILURES": End.SUCCEEDED_WITH_FAILURES,
    "RUN_EXECUTION_ERROR": End.FAILED,
    "CANCELED": End.CANCELED,
    "USER_CANCELED": End.CANCELED,
}


@dataclass(frozen=True)
class DeployedJob:
    """A Databricks job as jobs/list shows it."""

    job_id: int
    name: str
    creator: str


@dataclass(frozen=True)
class TaskRun:
    """One attempt of one task. Times are epoch milliseconds, 0 as long as there is none."""

    task_key: str
    state: RunSnapshot
    attempt_number: int = 0
    start_ms: int = 0
    end_ms: int = 0

    @property
    def seconds(self) -> float | None:
        """How long it took; None before it ended, and when it never began."""
        return _seconds(self.start_ms, self.end_ms)


@dataclass(frozen=True)
class DeployedRun:
    """A run with its tasks, as one ``runs/get`` showed it."""

    state: RunSnapshot
    tasks: tuple[TaskRun, ...] = ()
    start_ms: int = 0
    end_ms: int = 0

    @property
    def seconds(self) -> float | None:
        """How long it took; None before it ended."""
        return _seconds(self.start_ms, self.end_ms)

    @property
    def end(self) -> End | None:
        """How it ended; None while it is under way. A state that nobody knows has ended once it has an end time."""
        unknown = self.state.life_cycle_state is None and self.state.status_state is None
        return End.UNKNOWN if unknown and self.end_ms else end_of(self.state)

    @property
    def latest_tasks(self) -> tuple[TaskRun, ...]:
        """The last attempt of each task, in the order in which the tasks first appear; attempts come unordered."""
        latest: dict[str, TaskRun] = {}
        for task in self.tasks:
            seen = latest.get(task.task_key)
            if seen is None or (task.attempt_number, task.start_ms) > (seen.attempt_number, seen.start_ms):
                latest[task.task_key] = task
        return tuple(latest.values())

    @property
    def words(self) -> str:
        """The state of the run and of its tasks, for people."""
        tasks = ", ".join(f"{task.task_key} {task.state.words}" for task in self.latest_tasks)
        return self.state.words + (f" ({tasks})" if tasks else "")


@dataclass(frozen=True)
class TaskOutput:
    """What a task run left behind: its standard output and error, and why it failed (empty when it did not)."""

    logs: str = ""
    error: str = ""
    truncated: bool = False


class DeployedJobs(Protocol):
    """The Jobs API as far as starting a deployed job and following its run go: one HTTP attempt for each page.

    Every method raises WorkspaceUnavailable, Throttled, AuthenticationFailed or Refused, and nothing else.
    """

    def find_jobs(self, name: str) -> list[DeployedJob]:
        """The jobs of that name over all pages; the API compares names without regard to upper and lower case."""

    def start(self, job_id: int, idempotency_token: str) -> int:
        """run-now with the job's own settings and queueing; the id of the run that exists, if the token was used."""

    def look_up(self, run_id: int) -> DeployedRun:
        """runs/get with all tasks. Raises Refused with ``gone`` when the run does not exist."""

    def active_runs(self, job_id: int) -> list[int]:
        """The ids of the job's active runs, newest first."""

    def output(self, task_run_id: int) -> TaskOutput:
        """runs/get-output of one task run; a job run's id is refused when the job has several tasks."""

    def cancel(self, run_id: int) -> None:
        """runs/cancel; the run ends some time later. Asking again changes nothing."""

    def page_url(self, job_id: int, run_id: int) -> str:
        """The link to the page of a run or task run; makes no call."""

    def scrub(self, text: str) -> str:
        """``text`` without any secret of this connection."""


def token_of(dagster_run_id: str) -> str:
    """The idempotency token of a Dagster run: the same for every try within it, another for every other run.

    64 characters, the API's limit. It leaves out the job: one Dagster run has one Databricks run even when the job is
    deployed anew between two tries.
    """
    return hashlib.sha256(f"process_manager_on_cluster {dagster_run_id}".encode()).hexdigest()


def choose_job(found: Sequence[DeployedJob], name: str) -> int:
    """The id of the only job with exactly this name. Raises ConfigurationError when there is none, or more than one."""
    exact = [job for job in found if job.name == name]
    if len(exact) == 1:
        return exact[0].job_id
    if exact:
        raise ConfigurationError(
            f"{len(exact)} Databricks jobs are called {name!r}: {_listed(exact)}. Set job_id to the one that is meant."
        )
    others = f" There is {_listed(found)}; upper and lower case count." if found else ""
    raise ConfigurationError(
        f"no Databricks job that we may see is called {name!r}.{others} Deploy the bundle, or set job_name or job_id; "
        f"a job that was deployed for development has a prefix such as '[dev somebody] {name}'."
    )


def _listed(jobs: Iterable[DeployedJob]) -> str:
    shown = [f"{job.name!r}, job_id {job.job_id}, created by {job.creator or 'somebody unknown'}" for job in jobs]
    rest = len(shown) - _LISTED
    return "; ".join(shown[:_LISTED]) + (f"; and {rest} more" if rest > 0 else "")


def end_of(run: RunSnapshot) -> End | None:
    """How the run ended; None while it is under way, which a state that we do not know counts as."""
    if run.standing is Standing.ACTIVE:
        return None
    if run.result_state in _BUSY or run.termination_code in _BUSY:
        return End.SKIPPED
    if run.result_state is not None:
        return _BY_RESULT.get(run.result_state, End.UNKNOWN)
    if run.standing is Standing.NEVER_RAN:
        # The API may leave out why a run was skipped; this is the only reason that it documents for jobs without queue.
        return End.SKIPPED if run.termination_code in (None, "SKIPPED") else End.NEVER_RAN
    if run.termination_code in _BY_CODE:
        return _BY_CODE[run.termination_code]
    return End.INTERNAL_ERROR if run.life_cycle_state == "INTERNAL_ERROR" else End.UNKNOWN


def _seconds(start_ms: int, end_ms: int) -> float | None:
    return (end_ms - start_ms) / 1000 if 0 < start_ms <= end_ms else None
