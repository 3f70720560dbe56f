"""New attempts: the first one of a run, and its repairs; when a run may be repaired and which tasks run again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from pm_dagster.sandbox.workspace import lifecycle
from pm_dagster.sandbox.workspace.errors import ApiError, invalid
from pm_dagster.sandbox.workspace.model import Attempt, Job, Json, Run, TaskRun
from pm_dagster.sandbox.workspace.switches import Switches


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


# The one wording that is known from the real service.
NEEDS_ID = "The latest repair ID needs to be provided in order to create a new repair"


@dataclass(frozen=True)
class RepairRequest:
    """What a caller asks for."""

    run_id: int
    latest_repair_id: int | None = None
    rerun_tasks: list[str] = field(default_factory=list)
    rerun_all_failed_tasks: bool = False
    rerun_dependent_tasks: bool = False
    parameters: dict[str, str] = field(default_factory=dict)
    python_params: list[str] | None = None


def new_repair(
    request: RepairRequest, run: Run, job: Job | None, switches: Switches, new_id: Callable[[], int], *, full: bool
) -> Attempt:
    """The repair as an attempt that has not been admitted yet, or the refusal."""
    _check_state(run, switches, full=full)
    _check_selectors(request, switches)
    _check_latest(request, run, switches)
    tasks = job.tasks if job is not None else [task.settings for task in run.latest_tasks().values()]
    chosen = _chosen(request, run, tasks)
    if not chosen:
        if switches.repair_of_success == "refuse":
            raise invalid(f"Run {run.run_id} has no failed tasks to repair.")
        chosen = tasks
    attempt = new_attempt(run, job, chosen, new_id, numbers_grow=switches.attempt_number_on_repair == "grows")
    attempt.repair_id = new_id()
    attempt.python_params = run.last.python_params if request.python_params is None else request.python_params
    return attempt


def _check_state(run: Run, switches: Switches, *, full: bool) -> None:
    if run.last.active:
        text = f"Run {run.run_id} is in progress and cannot be repaired."
        raise ApiError(switches.repair_refusal_status, switches.repair_refusal_code, text)
    if run.last.life == "SKIPPED" and switches.repair_of_skipped == "refuse":
        raise invalid(f"Run {run.run_id} was skipped and cannot be repaired.")
    if full and switches.repair_at_limit == "refuse":
        raise invalid(f"Job {run.job_id} has reached its limit of concurrent runs.")


def _check_selectors(request: RepairRequest, switches: Switches) -> None:
    if request.rerun_tasks and request.rerun_all_failed_tasks:
        raise invalid("Only one of rerun_tasks and rerun_all_failed_tasks can be used.")
    neither = not request.rerun_tasks and not request.rerun_all_failed_tasks
    if neither and switches.repair_without_selector == "refuse":
        raise invalid("One of rerun_tasks and rerun_all_failed_tasks needs to be provided.")


def _check_latest(request: RepairRequest, run: Run, switches: Switches) -> None:
    known = run.latest_repair_id
    if request.latest_repair_id == known:
        return
    if known is None:
        if switches.first_repair_with_id == "refuse":
            raise invalid(f"Run {run.run_id} has no repair {request.latest_repair_id}.")
    elif request.latest_repair_id is None:
        raise ApiError(400, switches.stale_repair_id_code, NEEDS_ID)
    else:
        text = f"The latest repair ID {request.latest_repair_id} is not the latest repair of run {run.run_id}."
        raise ApiError(400, switches.stale_repair_id_code, text)


def _chosen(request: RepairRequest, run: Run, tasks: list[Json]) -> list[Json]:
    keys = {str(task["task_key"]) for task in tasks}
    unknown = sorted(set(request.rerun_tasks) - keys)
    if unknown:
        raise invalid(f"Task {unknown[0]} does not exist in run {run.run_id}.")
    if request.rerun_tasks:
        wanted = set(request.rerun_tasks)
    else:
        ran = run.latest_tasks()
        wanted = {key for key in keys if key not in ran or ran[key].result != "SUCCESS"}
    if request.rerun_dependent_tasks:
        wanted = _with_dependents(wanted, tasks)
    return [task for task in tasks if task["task_key"] in wanted]


def _with_dependents(wanted: set[str], tasks: list[Json]) -> set[str]:
    grown = set(wanted)
    for task in upstream_first(tasks):
        if any(each["task_key"] in grown for each in task.get("depends_on") or []):
            grown.add(str(task["task_key"]))
    return grown
