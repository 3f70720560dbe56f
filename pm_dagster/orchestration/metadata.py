"""What materializations and the asset check show in the Dagster UI: numbers to plot, and tables with links.

Of a dispatch here, and of one on a cluster. The keys are a contract, so that plots go on; both use the same ones. The
numbers of a dispatch on a cluster come out of the output of its program: what is no number is left out.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from math import isfinite
from typing import Any, TypeGuard

import dagster as dg
import pandas as pd

from pm_dagster.dispatch.model import Outcome
from pm_dagster.dispatch.report import COUNTED, Report, ReportRow
from pm_dagster.dispatch.sender import Part
from pm_dagster.dispatch.waiting_job import Branch
from pm_dagster.launcher.deployed_job import DeployedRun, TaskRun
from pm_dagster.launcher.run_outcome import LaunchOutcome

#: A table of more rows would weigh on the event log of every dispatch; `pm explain` has each row.
_SHOWN = 100
_REASON_LENGTH = 160
#: Keys of the report line of a dispatch on a cluster and, beside them, those of ``dispatched_jobs``.
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


def waiting_metadata(waiting_jobs: pd.DataFrame) -> dict[str, Any]:
    """Metadata of ``waiting_jobs``."""
    return {"dagster/row_count": len(waiting_jobs), "oldest waiting (seconds)": oldest_age(waiting_jobs) or 0.0}


def oldest_age(waiting_jobs: pd.DataFrame) -> float | None:
    """Age in seconds of the row that has waited longest; None without rows or arrival times."""
    oldest = waiting_jobs["since"].min()
    if pd.isna(oldest):
        return None
    arrived: datetime = oldest.to_pydatetime()
    return max(0.0, (datetime.now(UTC) - arrived).total_seconds())


def dispatch_metadata(report: Report, waiting_jobs: pd.DataFrame, further: Report | None = None) -> dict[str, Any]:
    """Metadata of ``dispatched_jobs``; ``further`` is the part of the report that came while it lingered."""
    counts = {f"{branch.value}/{outcome}": n for branch in Branch for outcome, n in report.counts(branch).items()}
    return {
        **counts,
        "read": report.read,
        "scheduled": report.scheduled,
        "taken over": report.rescued,
        "left for the next dispatch": report.left,
        "API calls": report.calls,
        "API calls throttled": report.throttled,
        "API share of time": _share(report.api_seconds, report.seconds),
        "seconds": round(report.seconds, 3),
        "oldest waiting (seconds)": oldest_age(waiting_jobs) or 0.0,
        **({} if further is None else {"rows that came while it lingered": len(further.rows)}),
        "rows": dg.MetadataValue.md(rows_table(report.rows)),
    }


def calls_metadata(part: Part) -> dict[str, Any]:
    """Metadata of an op that sends: when its calls were made, which may be before it began."""
    times = {"first API call": part.calls.first, "last API call": part.calls.last}
    return {
        "API calls": part.calls.number,
        **{name: dg.MetadataValue.timestamp(moment) for name, moment in times.items() if moment is not None},
        "both branches at once": part.at_once,
    }


def _share(api_seconds: float, seconds: float) -> float:
    return min(1.0, round(api_seconds / seconds, 3)) if seconds > 0 else 0.0


def rows_table(rows: list[ReportRow]) -> str:
    """A Markdown table of the rows; those that a person should look at come first."""
    if not rows:
        return "This dispatch had no rows."
    first = sorted(rows, key=lambda row: row.outcome in (Outcome.ACCEPTED, Outcome.ADOPTED))
    lines = ["| row | branch | outcome | run | status | reason |", "| --: | --- | --- | --- | --- | --- |"]
    lines += [_row_line(row) for row in first[:_SHOWN]]
    return "\n".join(lines) + _rest(len(rows))


def _row_line(row: ReportRow) -> str:
    run = f"[{row.databricks_run_id}]({row.page_url})" if row.page_url else str(row.databricks_run_id or "")
    cells = (row.run_id, row.branch.value, row.outcome.value, run, row.control_status or "", cell(row.reason))
    return "| " + " | ".join(str(value) for value in cells) + " |"


def quarantined_metadata(quarantined: pd.DataFrame) -> dict[str, Any]:
    """Metadata of the asset check: how many rows are quarantined, and why each of them is."""
    return {"quarantined": len(quarantined), "rows": dg.MetadataValue.md(_quarantined_table(quarantined))}


def _quarantined_table(rows: pd.DataFrame) -> str:
    if rows.empty:
        return "None."
    lines = ["| row | branch | reason |", "| --: | --- | --- |"]
    for run_id, branch, reason in rows[["run_id", "branch", "reason"]].astype(object).head(_SHOWN).to_numpy():
        lines.append(f"| {'unreadable' if run_id is pd.NA else run_id} | {branch} | {cell(str(reason))} |")
    return "\n".join(lines) + _rest(len(rows))


def _rest(number: int) -> str:
    return f"\n\n{number - _SHOWN} more rows are not shown; `pm explain` has each." if number > _SHOWN else ""


def cell(text: str) -> str:
    """Text that cannot leave its cell: a reason may quote a row's own values."""
    flat = " ".join(text.split())
    short = flat if len(flat) <= _REASON_LENGTH else f"{flat[: _REASON_LENGTH - 3]}..."
    escaped = {"|": "\\|", "<": "&lt;", "[": "\\[", "]": "\\]", "`": "'", "!": "\\!"}
    return "".join(escaped.get(letter, letter) for letter in short)


def cluster_metadata(outcome: LaunchOutcome) -> dict[str, Any]:
    """Metadata of ``process_manager_on_cluster``, for a success and a failure alike."""
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
        **({} if outcome.succeeded else _task_messages(outcome)),
    }


def report_metadata(report: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a report line under the keys of ``dispatched_jobs``; nothing of an empty one."""
    found: dict[str, Any] = {}
    for branch in Branch:
        counts = report.get(branch.value)
        if isinstance(counts, Mapping):
            found |= {f"{branch.value}/{outcome.value}": counts.get(outcome.value) for outcome in COUNTED}
    found |= {shown: report.get(key) for key, shown in _NUMBERS.items()}
    api_seconds, seconds = report.get("api_seconds"), report.get("seconds")
    if _is_number(api_seconds) and _is_number(seconds):
        found["API share of time"] = _share(api_seconds, seconds)
    return {key: value for key, value in found.items() if _is_number(value)}


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def _task_messages(outcome: LaunchOutcome) -> dict[str, Any]:
    """The error and the last lines of output of each task of a failed run."""
    errors = {f"error of {task.task_key}": task.error for task in outcome.messages if task.error}
    tails = {f"last lines of {task.task_key}": _verbatim(task.tail) for task in outcome.messages if task.tail}
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
    return "\n".join([*lines, *(_task_line(task, pages[task.state.run_id]) for task in tasks)])


def _task_line(task: TaskRun, page: str) -> str:
    state = task.state
    cells = (
        cell(task.task_key),
        state.life_cycle_state or state.status_state or "unknown",
        state.result_state or state.termination_code or "",
        "" if task.seconds is None else f"{task.seconds:.1f} s",
        f"[{state.run_id}]({page})",
    )
    return "| " + " | ".join(cells) + " |"
