"""The life of an attempt whose tasks execute: what may run next, how a task ends, and what that makes of the run.

Put here: transitions at a given time. Keep out: processes, locking, the clock, attempts that follow a script
(``lifecycle.py``). The shapes are those of the service; see there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pm_dagster.sandbox.workspace.model import Attempt, TaskRun

TASK_FAILED = "Workload failed, see run output for details"
LOST = "The local workspace ended while this run was under way, and its programs with it."
BROKEN = "The local workspace itself failed; see its log."

# https://docs.databricks.com/jobs/run-if.html: over whether each task depended on succeeded.
_RUN_IF: Mapping[str, Callable[[Sequence[bool]], bool]] = {
    "ALL_SUCCESS": all,
    "NONE_FAILED": all,
    "ALL_DONE": lambda _: True,
    "AT_LEAST_ONE_SUCCESS": any,
    "ALL_FAILED": lambda good: not any(good),
    "AT_LEAST_ONE_FAILED": lambda good: not all(good),
}
_WHOLE = frozenset({"SUCCESS", "EXCLUDED"})


@dataclass(frozen=True)
class TaskEnd:
    """How a task ended: life cycle state, result and message, and what get-output says of an error."""

    life: str
    result: str
    message: str = ""
    error: str = ""
    error_trace: str = ""


SUCCEEDED = TaskEnd("TERMINATED", "SUCCESS")
#: The end of a task that was stopped, by why it was.
STOPPED = {
    "cancel": TaskEnd("TERMINATED", "CANCELED", "Run cancelled."),
    "timeout": TaskEnd("TERMINATED", "TIMEDOUT", "Timed out."),
    "lost": TaskEnd("INTERNAL_ERROR", "FAILED", LOST, LOST),
    "broken": TaskEnd("INTERNAL_ERROR", "FAILED", BROKEN, BROKEN),
}


def failed(error: str, trace: str) -> TaskEnd:
    """The end of a program that did not end well."""
    return TaskEnd("TERMINATED", "FAILED", TASK_FAILED, error, trace)


def not_started(reason: str) -> TaskEnd:
    """The end of a task for which something was missing."""
    return TaskEnd("INTERNAL_ERROR", "FAILED", reason, reason)


def begin(attempt: Attempt, _: float) -> None:
    """Let the tasks wait for their turn; a run that was cancelled meanwhile stays TERMINATING."""
    if attempt.life == "PENDING":
        attempt.life, attempt.message = "RUNNING", "In run"
    keys = {task.task_key for task in attempt.tasks}
    for task in attempt.tasks:
        task.life = "PENDING" if keys.isdisjoint(task.depends_on) else "BLOCKED"


def begin_task(task: TaskRun, now: float) -> None:
    """Let a task run."""
    task.life, task.message, task.start = "RUNNING", "In run", now


def end_task(task: TaskRun, end: TaskEnd, now: float) -> None:
    """Let a task end."""
    task.life, task.result, task.message, task.end = end.life, end.result, end.message, now
    task.error, task.error_trace = end.error, end.error_trace


def obstacle(attempt: Attempt, task: TaskRun) -> TaskEnd | None:
    """Why the task must not run now that those it depends on are over; None when it may.

    Tasks that are not part of a repair count as they ended before: well, or it would be no use to repair without them.
    """
    upstream = [each.result for each in attempt.tasks if each.task_key in task.depends_on]
    rule = _RUN_IF.get(str(task.settings.get("run_if") or "ALL_SUCCESS"), all)
    if not upstream or rule([result == "SUCCESS" for result in upstream]):
        return None
    if "CANCELED" in upstream or "UPSTREAM_CANCELED" in upstream:
        return TaskEnd("SKIPPED", "UPSTREAM_CANCELED", "An upstream task was cancelled.")
    if _WHOLE.issuperset(upstream):
        return TaskEnd("SKIPPED", "EXCLUDED", "The condition of run_if was not met.")
    return TaskEnd("SKIPPED", "UPSTREAM_FAILED", "An upstream task failed.")


def conclude(attempt: Attempt, stopped: str | None, now: float) -> None:
    """End the attempt by what its tasks came to, or by why it was stopped before they were through."""
    if stopped is not None:
        for task in attempt.tasks:
            if task.active:
                end_task(task, obstacle(attempt, task) or STOPPED[stopped], now)
        end = STOPPED[stopped]
        attempt.life, attempt.result, attempt.message = end.life, end.result, end.message
    else:
        attempt.life, attempt.result, attempt.message = _outcome(attempt)
    attempt.end, attempt.due = now, None


def _outcome(attempt: Attempt) -> tuple[str, str, str]:
    bad = [task for task in attempt.tasks if task.result not in _WHOLE]
    if not bad:
        return "TERMINATED", "SUCCESS", ""
    needed = {key for task in attempt.tasks for key in task.depends_on}
    if all(task.result == "SUCCESS" for task in attempt.tasks if task.task_key not in needed):
        return "TERMINATED", "SUCCESS_WITH_FAILURES", ""
    first = next((task for task in bad if task.result == "FAILED"), None)
    if first is None:
        return "TERMINATED", "TIMEDOUT", "Timed out."
    skipped = any(task.result == "UPSTREAM_FAILED" for task in attempt.tasks)
    tail = " This caused all downstream tasks to get skipped." if skipped else ""
    message = f"Task {first.task_key} failed with message: {first.message.rstrip('.')}.{tail}"
    return "INTERNAL_ERROR", "FAILED", message
