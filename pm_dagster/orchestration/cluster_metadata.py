"""What a run on a cluster shows of itself in the Dagster UI: its page, how its tasks ended, the numbers of its report.

Put here: wording and form. Keep out: what the outcome is (``core.cluster_outcome``). The numbers come out of the output
of a program on the cluster: what is no number is left out.
"""

from collections.abc import Mapping
from math import isfinite
from typing import Any, TypeGuard

import dagster as dg

from pm_dagster.dispatch.report import COUNTED
from pm_dagster.dispatch.waiting_job import Branch
from pm_dagster.launcher.deployed_job import DeployedRun, TaskRun
from pm_dagster.launcher.run_outcome import LaunchOutcome
from pm_dagster.orchestration.metadata import cell

#: Keys of the report line and, beside them, those of ``dispatched_jobs``, so that the plots of both look alike.
_NUMBERS = {
    "read": "read",
    "scheduled": "scheduled",
    "taken_over": "taken over",
    "left": "left for the next dispatch",
    "withdrawn": "withdrawn",
    "calls": "API calls",
    "throttled": "API calls throttled",
    "seconds": "seconds",
}


def cluster_metadata(outcome: LaunchOutcome) -> dict[str, Any]:
    """Metadata of ``process_manager_on_cluster``, for a success and a failure alike; the keys are a contract."""
    ended = outcome.ended
    return {
        "run page": dg.MetadataValue.url(outcome.page_url),
        # As text: ids are not to be plotted, and keep every digit.
        "Databricks job id": str(ended.job_id),
        "Databricks run id": str(ended.run_id),
        "end": ended.end.value,
        "tasks": dg.MetadataValue.md(tasks_table(ended.run, outcome.task_pages)),
        "Databricks run (seconds)": round(outcome.seconds, 3),
        **report_metadata(outcome.report or {}),
        **({} if outcome.succeeded else _words(outcome)),
    }


def report_metadata(report: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a report line under the keys of ``dispatched_jobs``; nothing of an empty one."""
    found: dict[str, Any] = {}
    for branch in Branch:
        counts = report.get(branch.value)
        if isinstance(counts, Mapping):
            found |= {f"{branch.value}/{outcome.value}": counts.get(outcome.value) for outcome in COUNTED}
    found |= {shown: report.get(key) for key, shown in _NUMBERS.items()}
    found["API share of time"] = _share(report.get("api_seconds"), report.get("seconds"))
    return {key: value for key, value in found.items() if _is_number(value)}


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def _share(api_seconds: object, seconds: object) -> float | None:
    if not _is_number(api_seconds) or not _is_number(seconds):
        return None
    return min(1.0, round(api_seconds / seconds, 3)) if seconds > 0 else 0.0


def _words(outcome: LaunchOutcome) -> dict[str, Any]:
    """What the tasks of a failed run said, under their names."""
    errors = {f"error of {task.task_key}": task.error for task in outcome.words if task.error}
    tails = {f"last lines of {task.task_key}": _verbatim(task.tail) for task in outcome.words if task.tail}
    return {**errors, **tails}


def _verbatim(text: str) -> dg.MarkdownMetadataValue:
    """Lines as they are: plain text would lose the line ends, and a block by indentation cannot be broken out of."""
    return dg.MetadataValue.md("\n".join(f"    {line}" for line in text.splitlines()))


def tasks_table(run: DeployedRun | None, pages: Mapping[int, str]) -> str:
    """A Markdown table of the last attempt of each task."""
    tasks = run.latest_tasks if run else ()
    if not tasks:
        return "No task was seen."
    lines = ["| task | life cycle | result | duration | page |", "| --- | --- | --- | --: | --- |"]
    return "\n".join([*lines, *(_line(task, pages[task.state.run_id]) for task in tasks)])


def _line(task: TaskRun, page: str) -> str:
    state = task.state
    cells = (
        cell(task.task_key),
        state.life_cycle_state or state.status_state or "unknown",
        state.result_state or state.termination_code or "",
        "" if task.seconds is None else f"{task.seconds:.1f} s",
        f"[{state.run_id}]({page})",
    )
    return "| " + " | ".join(cells) + " |"
