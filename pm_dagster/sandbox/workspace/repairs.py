"""When a run may be repaired, and which of its tasks run again.

Put here: the checks in the order of the service: state, selectors, latest_repair_id as a compare-and-set. Keep out:
existence and permission (``state.py``), and starting the repair.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from pm_dagster.sandbox.workspace import attempts
from pm_dagster.sandbox.workspace.errors import ApiError, invalid
from pm_dagster.sandbox.workspace.model import Attempt, Job, Json, Run
from pm_dagster.sandbox.workspace.switches import Switches

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
    attempt = attempts.new_attempt(run, job, chosen, new_id, numbers_grow=switches.attempt_number_on_repair == "grows")
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
    for task in attempts.upstream_first(tasks):
        if any(each["task_key"] in grown for each in task.get("depends_on") or []):
            grown.add(str(task["task_key"]))
    return grown
