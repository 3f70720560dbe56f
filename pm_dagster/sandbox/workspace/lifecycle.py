"""The life of one attempt: PENDING, RUNNING, its end; what each end looks like on the run and on its tasks.

An attempt follows a script, or its tasks execute. A failed task ends the run as INTERNAL_ERROR with result FAILED, as
the real service does. The clock, locking and processes are elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pm_dagster.sandbox.workspace.model import Attempt, TaskRun

_TASK_FAILED = "Workload failed, see run output for details"

# outcome -> the run's life cycle state, its result, the failing task's result (None: no task fails)
_ENDS: dict[str, tuple[str, str | None, str | None]] = {
    "succeed": ("TERMINATED", "SUCCESS", None),
    "fail": ("INTERNAL_ERROR", "FAILED", "FAILED"),
    "timeout": ("TERMINATED", "TIMEDOUT", "TIMEDOUT"),
    "internal_error": ("INTERNAL_ERROR", None, None),
    "succeed_with_failures": ("TERMINATED", "SUCCESS_WITH_FAILURES", "FAILED"),
    "cancel": ("TERMINATED", "CANCELED", "CANCELED"),
}

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


def begin(attempt: Attempt, now: float) -> None:
    """Let the attempt leave the start."""
    attempt.life, attempt.message = "PENDING", ""
    attempt.start = now
    attempt.due = None if attempt.executes else now + attempt.pending_seconds


def queue(attempt: Attempt, now: float, limit: int) -> None:
    """Let the attempt wait for a free place."""
    attempt.life = "QUEUED"
    attempt.message = f"Queued due to reaching maximum concurrent runs of {limit}."
    attempt.start, attempt.due = now, None


def skip(attempt: Attempt, now: float, limit: int) -> None:
    """End the attempt before it began."""
    attempt.life, attempt.result = "SKIPPED", "MAXIMUM_CONCURRENT_RUNS_REACHED"
    attempt.message = f"Skipping this run because the limit of {limit} maximum concurrent runs has been reached."
    attempt.start = attempt.end = now
    attempt.due = None
    for task in attempt.tasks:
        end_task(task, TaskEnd("SKIPPED", "MAXIMUM_CONCURRENT_RUNS_REACHED", attempt.message), now)


def step(attempt: Attempt) -> None:
    """Make the transition that is due."""
    now = attempt.due or 0.0
    if attempt.life == "PENDING":
        _run(attempt, now)
    elif attempt.life == "TERMINATING":
        finish(attempt, "cancel", now)
    else:
        finish(attempt, attempt.outcome, now)


def cancel(attempt: Attempt, now: float, seconds: float) -> None:
    """Ask for the end; it comes ``seconds`` later, or when what executes has ended."""
    executing = attempt.executes and attempt.life != "QUEUED"
    attempt.life, attempt.due = "TERMINATING", None if executing else now + seconds


def finish(attempt: Attempt, outcome: str, now: float) -> None:
    """End the attempt and its tasks as the outcome says."""
    life, result, task_result = _ENDS[outcome]
    attempt.life, attempt.result, attempt.end, attempt.due = life, result, now, None
    _finish_tasks(attempt, task_result, now)
    attempt.message = _run_message(attempt, outcome)


def _run(attempt: Attempt, now: float) -> None:
    attempt.life, attempt.message = "RUNNING", "In run"
    attempt.due = None if attempt.seconds is None else now + attempt.seconds
    keys = {task.task_key for task in attempt.tasks}
    for task in attempt.tasks:
        if keys.isdisjoint(task.depends_on):
            task.life, task.start, task.message = "RUNNING", now, "In run"
        else:
            task.life = "BLOCKED"


def _finish_tasks(attempt: Attempt, bad_result: str | None, now: float) -> None:
    upstream = "UPSTREAM_CANCELED" if bad_result == "CANCELED" else "UPSTREAM_FAILED"
    bad: set[str] = set()
    for task in attempt.tasks:
        if not bad.isdisjoint(task.depends_on):
            end_task(task, TaskEnd("SKIPPED", upstream, "An upstream task failed."), now)
        elif bad_result is not None and (not bad or bad_result == "CANCELED"):
            message = {"FAILED": _TASK_FAILED, "CANCELED": "Run cancelled."}.get(bad_result, "Timed out.")
            end_task(task, TaskEnd("TERMINATED", bad_result, message), now)
        else:
            task.start = task.start or attempt.start
            end_task(task, SUCCEEDED, now)
        if task.result != "SUCCESS":
            bad.add(task.task_key)


def _run_message(attempt: Attempt, outcome: str) -> str:
    if outcome == "fail":
        return _failure(attempt, next(task for task in attempt.tasks if task.result == "FAILED"))
    return {
        "cancel": "Run cancelled.",
        "timeout": "Timed out.",
        "internal_error": "The run could not be started due to an internal error.",
    }.get(outcome, "")


def failed(error: str, trace: str) -> TaskEnd:
    """The end of a program that did not end well."""
    return TaskEnd("TERMINATED", "FAILED", _TASK_FAILED, error, trace)


def not_started(reason: str) -> TaskEnd:
    """The end of a task for which something was missing."""
    return TaskEnd("INTERNAL_ERROR", "FAILED", reason, reason)


def begin_executing(attempt: Attempt, _: float) -> None:
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
    return "INTERNAL_ERROR", "FAILED", _failure(attempt, first)


def _failure(attempt: Attempt, task: TaskRun) -> str:
    """The run's message when this task failed."""
    skipped = any(each.result == "UPSTREAM_FAILED" for each in attempt.tasks)
    tail = " This caused all downstream tasks to get skipped." if skipped else ""
    return f"Task {task.task_key} failed with message: {task.message.rstrip('.')}.{tail}"
