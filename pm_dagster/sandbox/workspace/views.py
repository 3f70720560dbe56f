"""The wire shapes of jobs, runs and lists, as the documentation and recorded answers show them."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from pm_dagster.sandbox.workspace.errors import invalid
from pm_dagster.sandbox.workspace.model import USER_NAME, WORKSPACE_ID, Attempt, Job, Json, Phase, Run, TaskRun
from pm_dagster.sandbox.workspace.switches import Switches

Item = TypeVar("Item")
Key = tuple[float, int]


def position_of(token: str | None) -> int:
    """Where the page begins."""
    return 0 if not token else int(_decode(token, 1)[0])


def position_token(position: int) -> str:
    """The token of the page that begins there."""
    return _encode(str(position))


def after_key(
    items: Sequence[Item], key: Callable[[Item], Key], token: str | None, limit: int
) -> tuple[list[Item], str]:
    """A page of items sorted by falling key, and the next page's token (empty on the last page)."""
    rest = list(items)
    if token:
        parts = _decode(token, 2)
        last = (float(parts[0]), int(parts[1]))
        rest = [item for item in rest if key(item) < last]
    page = rest[:limit]
    following = _encode(*map(repr, key(page[-1]))) if len(rest) > limit else ""
    return page, following


def _encode(*parts: str) -> str:
    return base64.urlsafe_b64encode(" ".join(parts).encode()).decode()


def _decode(token: str, count: int) -> list[str]:
    try:
        parts = base64.urlsafe_b64decode(token.encode()).decode().split(" ")
        numbers = [float(part) for part in parts]
    except ValueError:
        raise invalid("Invalid page_token.") from None
    if len(numbers) != count or any(number < 0 for number in numbers):
        raise invalid("Invalid page_token.")
    return parts


_CODES = {
    "SUCCESS": ("SUCCESS", "SUCCESS"),
    "SUCCESS_WITH_FAILURES": ("SUCCESS_WITH_FAILURES", "SUCCESS"),
    "CANCELED": ("USER_CANCELED", "CLIENT_ERROR"),
    "MAXIMUM_CONCURRENT_RUNS_REACHED": ("MAX_CONCURRENT_RUNS_EXCEEDED", "CLIENT_ERROR"),
    "UPSTREAM_FAILED": ("SKIPPED", "CLIENT_ERROR"),
    "UPSTREAM_CANCELED": ("SKIPPED", "CLIENT_ERROR"),
    "EXCLUDED": ("SKIPPED", "CLIENT_ERROR"),
    None: ("INTERNAL_ERROR", "INTERNAL_ERROR"),
}


@dataclass(frozen=True)
class Lens:
    """What a view depends on besides the thing itself."""

    base_url: str
    switches: Switches

    def page_url(self, job_id: int, run_id: int) -> str:
        """The link to a run's page."""
        if self.switches.run_page_url == "legacy":
            return f"{self.base_url}/?o={WORKSPACE_ID}#job/{job_id}/run/{run_id}"
        return f"{self.base_url}/jobs/{job_id}/runs/{run_id}?o={WORKSPACE_ID}"


def millis(seconds: float) -> int:
    """Epoch milliseconds."""
    return round(seconds * 1000)


def job_view(job: Job, *, whole: bool = True) -> Json:
    """A job as jobs/get (whole) or jobs/list gives it."""
    settings = job.settings if whole else {key: job.settings[key] for key in job.settings if key != "tasks"}
    return {
        "job_id": job.job_id,
        "creator_user_name": USER_NAME,
        "run_as_user_name": USER_NAME,
        "created_time": millis(job.created),
        "settings": {"format": "MULTI_TASK", "max_concurrent_runs": 1, "timeout_seconds": 0, **settings},
    }


def standing(phase: Phase, lens: Lens) -> Json:
    """``state`` and ``status`` of a run, a repair or a task run."""
    life, result = phase.life, phase.result
    if life == "SKIPPED" and not lens.switches.skipped_result:
        result = None
    state: Json = {"life_cycle_state": life, "state_message": phase.message, "user_cancelled_or_timedout": False}
    status: Json = {"state": life}
    if life == "QUEUED":
        state |= {"queue_reason": phase.message, "state_message": ""}
        status["queue_details"] = {"code": "MAX_CONCURRENT_RUNS_REACHED", "message": phase.message}
    elif not phase.active:
        code, kind = _CODES.get(phase.result, ("RUN_EXECUTION_ERROR", "CLIENT_ERROR"))
        status["state"] = "TERMINATED"
        status["termination_details"] = {"code": code, "type": kind, "message": phase.message}
        state["user_cancelled_or_timedout"] = phase.result in ("CANCELED", "TIMEDOUT")
        if result is not None:
            state["result_state"] = result
    if lens.switches.unknown_states:
        state = {**state, "life_cycle_state": "DEFROSTING"}
        state.pop("result_state", None)
        status = {"state": "DEFROSTING"}
    return {"state": state, "status": status}


def run_view(run: Run, job: Job | None, lens: Lens, attempts: list[Attempt]) -> Json:
    """A run without its arrays of tasks and history, in the state of the last of these attempts."""
    last = attempts[-1]
    end = millis(last.end)
    overriding: Json = {"overriding_parameters": {"python_params": last.python_params}} if last.python_params else {}
    return {
        **overriding,
        "job_id": run.job_id,
        "run_id": run.run_id,
        "number_in_job": run.run_id,
        "original_attempt_run_id": run.run_id,
        "creator_user_name": USER_NAME,
        **standing(last, lens),
        "start_time": millis(attempts[0].start),
        "setup_duration": 0,
        "execution_duration": 0,
        "cleanup_duration": 0,
        "end_time": end,
        "run_duration": max(0, end - millis(attempts[0].start)),
        "trigger": "ONE_TIME",
        "run_name": run.name,
        "run_type": "JOB_RUN",
        "format": "MULTI_TASK",
        "run_page_url": lens.page_url(run.job_id, run.run_id),
        "job_parameters": parameters_view(run, job),
    }


def parameters_view(run: Run, job: Job | None) -> list[Json]:
    """Declared and given job parameters."""
    declared = (
        {str(each["name"]): each.get("default", "") for each in (job.settings.get("parameters") or [])} if job else {}
    )
    return [
        {"name": name, "default": declared.get(name, ""), "value": run.parameters.get(name, declared.get(name, ""))}
        for name in [*declared, *(name for name in run.parameters if name not in declared)]
    ]


def task_view(task: TaskRun, run: Run, lens: Lens) -> Json:
    """A task run as an element of a run."""
    spent = millis(task.end) - millis(task.start) if task.end and task.start else 0
    return {
        **task.settings,
        "run_id": task.run_id,
        "task_key": task.task_key,
        "attempt_number": task.attempt_number,
        "run_if": task.settings.get("run_if", "ALL_SUCCESS"),
        "run_page_url": lens.page_url(run.job_id, task.run_id),
        **standing(task, lens),
        "start_time": millis(task.start),
        "setup_duration": 0,
        "execution_duration": spent,
        "cleanup_duration": 0,
        "end_time": millis(task.end),
    }


def history_view(run: Run, attempts: list[Attempt], lens: Lens) -> list[Json]:
    """The repair history: the original first, then the repairs in order."""
    items: list[Json] = []
    for attempt in attempts:
        item: Json = {"type": "ORIGINAL" if attempt.repair_id is None else "REPAIR"}
        if attempt.repair_id is not None:
            item["id"] = attempt.repair_id
        elif lens.switches.original_has_id:
            item["id"] = run.run_id
        item |= standing(attempt, lens)
        item |= {"start_time": millis(attempt.start), "end_time": millis(attempt.end)}
        items.append(item | {"task_run_ids": [task.run_id for task in attempt.tasks]})
    return items
