"""Building runs and attempts: which task runs they hold and by which script they will go.

Put here: construction. Keep out: whether a run or a repair is allowed, and when it starts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from pm_dagster.sandbox.workspace import lifecycle
from pm_dagster.sandbox.workspace.errors import invalid
from pm_dagster.sandbox.workspace.model import Attempt, Job, Json, Run, TaskRun


@dataclass(frozen=True)
class RunRequest:
    """What a run-now asks for besides the job; ``only`` empty: all tasks."""

    parameters: Mapping[str, str] = field(default_factory=dict)
    python_params: list[str] | None = None
    only: Sequence[str] = ()


def new_run(job: Job, request: RunRequest, new_id: Callable[[], int], now: float) -> Run:
    """A run of the job that has not been admitted yet."""
    unknown = sorted(set(request.only) - {str(task["task_key"]) for task in job.tasks})
    if unknown:
        raise invalid(f"Task {unknown[0]} does not exist in job {job.job_id}.")
    run = Run(new_id(), job.job_id, job.name, now, dict(request.parameters))
    tasks = [task for task in job.tasks if not request.only or task["task_key"] in request.only]
    run.attempts.append(new_attempt(run, job, tasks, new_id))
    run.last.python_params = request.python_params
    return run


def new_attempt(
    run: Run, job: Job | None, tasks: Sequence[Json], new_id: Callable[[], int], *, numbers_grow: bool = True
) -> Attempt:
    """The next attempt of the run, over these tasks; without a job it goes as the last one was to go."""
    earlier = [task.task_key for attempt in run.attempts for task in attempt.tasks] if numbers_grow else []
    attempt = Attempt(
        tasks=[
            TaskRun(
                run_id=new_id(),
                task_key=str(task["task_key"]),
                attempt_number=earlier.count(task["task_key"]),
                settings=task,
            )
            for task in upstream_first(tasks)
        ]
    )
    if job is not None:
        attempt.outcome = job.outcomes[min(len(run.attempts), len(job.outcomes) - 1)]
        attempt.seconds, attempt.pending_seconds = job.seconds, job.pending_seconds
        attempt.settings = {**job.settings, "tasks": []} if job.executes else None
    elif run.attempts:
        attempt.outcome, attempt.seconds, attempt.settings = run.last.outcome, run.last.seconds, run.last.settings
    return attempt


def past_run(job: Job, run_id: int | None, outcome: str, repairs: int, new_id: Callable[[], int], ended: float) -> Run:
    """A run that is over, with so many repairs, one second each."""
    began = ended - (repairs + 1)
    run = Run(new_id() if run_id is None else run_id, job.job_id, job.name, began)
    for number in range(repairs + 1):
        attempt = new_attempt(run, job, job.tasks, new_id)
        attempt.repair_id = new_id() if number else None
        attempt.seconds, attempt.pending_seconds, attempt.settings = 1.0, 0.0, None
        lifecycle.begin(attempt, began + number)
        lifecycle.step(attempt)
        lifecycle.finish(attempt, outcome, began + number + 1)
        run.attempts.append(attempt)
    return run


def upstream_first(tasks: Sequence[Json]) -> list[Json]:
    """The tasks in an order in which they can run; a circle keeps its order."""
    left, ordered, done = list(tasks), list[Json](), set[str]()
    keys = {str(task["task_key"]) for task in tasks}
    while left:
        ready = [task for task in left if _needs(task) & keys <= done] or left
        ordered += ready
        done |= {str(task["task_key"]) for task in ready}
        left = [task for task in left if task not in ready]
    return ordered


def _needs(task: Json) -> set[str]:
    return {str(each["task_key"]) for each in task.get("depends_on") or []}
