"""The outcome of a run on a cluster: the reason, the numbers of its report, the messages of its tasks.

Nothing here changes how a run ended: what cannot be read is logged and left out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from pm_dagster.dispatch.model import Standing
from pm_dagster.dispatch.report import report_in
from pm_dagster.errors import ProcessManagerError
from pm_dagster.launcher.deployed_job import DeployedJobs, DeployedRun, End, TaskOutput, TaskRun

T = TypeVar("T")
#: runs/get-output allows 20 calls a second to all clients of a workspace together.
_OUTPUTS = 10
_NAMED = 3
#: Of an error within a sentence.
_SHORT = 300
_ERROR_LENGTH, _TAIL_LINES, _TAIL_LENGTH = 2000, 15, 3000


class Retrying(Protocol):
    """Makes a call, again as long as that may help. ``what`` names it in the log."""

    def __call__(self, what: str, call: Callable[[], T], /) -> T:
        """What the call gives, or what it raises in the end."""


@dataclass(frozen=True)
class RunEnd:
    """The end of the wait for a run.

    Attributes:
        job_id: The Databricks job.
        run_id: The Databricks run.
        end: How it ended, or why the wait did.
        waited: Seconds.
        run: The run as last seen; None when it never was.
        lost: Why it cannot be followed any more; empty when it can.
        cancelled: Whether the workspace accepted the request to cancel it.
    """

    job_id: int
    run_id: int
    end: End
    waited: float
    run: DeployedRun | None = None
    lost: str = ""
    cancelled: bool = False


@dataclass(frozen=True)
class TaskMessages:
    """What one task left in its output, without secrets: the error it failed with, and its last lines."""

    task_key: str
    error: str = ""
    tail: str = ""
    report: dict[str, Any] | None = None


@dataclass(frozen=True)
class LaunchOutcome:
    """How a run on a cluster went.

    Attributes:
        ended: The end of the wait for it.
        reason: A sentence for people.
        page_url: The link to the run's page.
        task_pages: The links to the pages of its task runs, by their ids.
        messages: What the tasks left in their output.
    """

    ended: RunEnd
    reason: str
    page_url: str
    task_pages: Mapping[int, str]
    messages: tuple[TaskMessages, ...] = ()

    @property
    def succeeded(self) -> bool:
        """Whether the dispatch was done."""
        return self.ended.end is End.SUCCEEDED

    @property
    def report(self) -> dict[str, Any] | None:
        """The numbers of the dispatch; None when no output has them."""
        return next((task.report for task in self.messages if task.report is not None), None)

    @property
    def seconds(self) -> float:
        """The run's own time; how long we waited, when it has none."""
        own = self.ended.run.seconds if self.ended.run else None
        return self.ended.waited if own is None else own


def launch_outcome(ended: RunEnd, jobs: DeployedJobs, retrying: Retrying, log: logging.Logger) -> LaunchOutcome:
    """The outcome with all that can be learned about it."""
    tasks = ended.run.latest_tasks if ended.run else ()
    ran = [task for task in tasks if task.start_ms and task.state.standing is not Standing.ACTIVE][:_OUTPUTS]
    messages = tuple(_messages_of(task, jobs, retrying, log) for task in ran)
    reason = jobs.scrub(_reason(ended, jobs, log)) + _errors(messages)
    pages = {run_id: jobs.page_url(ended.job_id, run_id) for run_id in (ended.run_id, *(t.state.run_id for t in tasks))}
    outcome = LaunchOutcome(ended, reason, pages[ended.run_id], pages, messages)
    if outcome.succeeded and outcome.report is None:
        log.warning(
            "The output of Databricks run %s has no report line: its counts are unknown.",
            ended.run_id,
        )
    return outcome


def _messages_of(task: TaskRun, jobs: DeployedJobs, retrying: Retrying, log: logging.Logger) -> TaskMessages:
    try:
        output = retrying("runs/get-output", lambda: jobs.output(task.state.run_id))
    except ProcessManagerError as error:
        log.warning("The output of task %s cannot be read: %s", task.task_key, jobs.scrub(str(error)))
        return TaskMessages(task.task_key)
    if output.truncated:
        log.warning("The workspace returned only a part of the output of task %s.", task.task_key)
    # Scrubbed before it is cut: half a secret is not recognised any more.
    error_text = jobs.scrub(output.error)[:_ERROR_LENGTH]
    return TaskMessages(task.task_key, error_text, _tail(output, jobs), report_in(output.logs))


def _tail(output: TaskOutput, jobs: DeployedJobs) -> str:
    lines = output.logs.rstrip().splitlines()[-_TAIL_LINES:]
    return jobs.scrub("\n".join(lines))[-_TAIL_LENGTH:]


def _reason(ended: RunEnd, jobs: DeployedJobs, log: logging.Logger) -> str:
    subject = f"Databricks run {ended.run_id}"
    state = ended.run.state if ended.run else None
    if ended.end is End.SUCCEEDED:
        return f"{subject} succeeded"
    if ended.end is End.SKIPPED:
        return f"{subject} {ended.end}{_in_the_way(ended, jobs, log)}"
    if ended.end is End.OVERDUE:
        return f"{subject} did not end within {round(ended.waited, 1):g} s; {_fate(ended)}"
    if ended.end is End.LOST:
        return f"{subject} {ended.end}{_after_colon(ended.lost)}; {_fate(ended)}"
    words, message = (state.words, state.message) if state else ("no state", "")
    return f"{subject} {ended.end} ({words}){_after_colon(message)}"


def _errors(messages: Sequence[TaskMessages]) -> str:
    """Why the tasks failed, in a few words each."""
    said = [(task.task_key, _flat(_why(task))[:_SHORT]) for task in messages]
    return "".join(f" In task {key}: {text}" for key, text in said if text)


def _why(task: TaskMessages) -> str:
    """The error; for one of ``sys.exit``, which says nothing, what the program logged before it ended."""
    if not task.error.startswith("SystemExit"):
        return task.error
    logged = [line for line in task.tail.splitlines() if "CRITICAL" in line or "ERROR" in line]
    return logged[-1] if logged else ""


def _fate(ended: RunEnd) -> str:
    seen = f"last seen as {ended.run.state.words}" if ended.run else "never seen"
    return ("it was cancelled" if ended.cancelled else "it could not be cancelled and may still run") + f" ({seen})"


def _after_colon(text: str) -> str:
    return f": {_flat(text)}" if text else ""


def _flat(text: str) -> str:
    return " ".join(text.split())


def _in_the_way(ended: RunEnd, jobs: DeployedJobs, log: logging.Logger) -> str:
    """Which run was active, as far as the workspace still shows it."""
    try:
        others = jobs.active_runs(ended.job_id)[:_NAMED]
    except ProcessManagerError as error:
        log.warning("The active runs of Databricks job %s cannot be listed: %s", ended.job_id, jobs.scrub(str(error)))
        return ""
    return _after_colon(", ".join(f"run {run_id}, {jobs.page_url(ended.job_id, run_id)}" for run_id in others))
