"""The life of one attempt: PENDING, RUNNING, its end; what each outcome looks like on the run and on its tasks.

Put here: transitions of a single attempt that follows a script, at a given time. Keep out: tasks that execute
(``execution/course.py``), which run may start (``scheduler.py``), the clock, and JSON. A failed task ends the run as
INTERNAL_ERROR with result FAILED, as the real service does.
"""

from __future__ import annotations

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
        _end_task(task, now, "SKIPPED", "MAXIMUM_CONCURRENT_RUNS_REACHED", attempt.message)


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
            _end_task(task, now, "SKIPPED", upstream, "An upstream task failed.")
        elif bad_result is not None and (not bad or bad_result == "CANCELED"):
            message = {"FAILED": _TASK_FAILED, "CANCELED": "Run cancelled."}.get(bad_result, "Timed out.")
            _end_task(task, now, "TERMINATED", bad_result, message)
        else:
            task.start = task.start or attempt.start
            _end_task(task, now, "TERMINATED", "SUCCESS", "")
        if task.result != "SUCCESS":
            bad.add(task.task_key)


def _end_task(task: TaskRun, now: float, life: str, result: str, message: str) -> None:
    task.life, task.result, task.end, task.message = life, result, now, message


def _run_message(attempt: Attempt, outcome: str) -> str:
    if outcome == "fail":
        failed = next(task.task_key for task in attempt.tasks if task.result == "FAILED")
        downstream = any(task.result == "UPSTREAM_FAILED" for task in attempt.tasks)
        tail = " This caused all downstream tasks to get skipped." if downstream else ""
        return f"Task {failed} failed with message: {_TASK_FAILED}.{tail}"
    return {
        "cancel": "Run cancelled.",
        "timeout": "Timed out.",
        "internal_error": "The run could not be started due to an internal error.",
    }.get(outcome, "")
