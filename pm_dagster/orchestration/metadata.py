"""What a dispatch shows of itself in the Dagster UI: numbers to plot, and a table of rows with links."""

from datetime import UTC, datetime
from typing import Any

import dagster as dg
import pandas as pd

from pm_dagster.dispatch.model import Outcome
from pm_dagster.dispatch.report import Report, ReportRow
from pm_dagster.dispatch.waiting_job import Branch

#: A table of more rows would weigh on the event log of every dispatch; `pm explain` has each row.
_SHOWN = 100
_REASON_LENGTH = 160
_COLUMNS = ("run_id", "branch", "outcome", "control_status", "databricks_run_id", "repair_id", "page_url", "reason")


def oldest_age(waiting_jobs: pd.DataFrame) -> float | None:
    """Age in seconds of the row that has waited longest; None without rows or arrival times."""
    oldest = waiting_jobs["since"].min()
    if pd.isna(oldest):
        return None
    arrived: datetime = oldest.to_pydatetime()
    return max(0.0, (datetime.now(UTC) - arrived).total_seconds())


def waiting_metadata(waiting_jobs: pd.DataFrame) -> dict[str, Any]:
    """Metadata of ``waiting_jobs``."""
    return {"dagster/row_count": len(waiting_jobs), "oldest waiting (seconds)": oldest_age(waiting_jobs) or 0.0}


def dispatch_metadata(report: Report, waiting_jobs: pd.DataFrame) -> dict[str, Any]:
    """Metadata of ``dispatched_jobs``; the keys are a contract, so that plots go on."""
    counts = {f"{branch.value}/{outcome}": n for branch in Branch for outcome, n in report.counts(branch).items()}
    share = report.api_seconds / report.seconds if report.seconds else 0.0
    return {
        **counts,
        "read": report.read,
        "scheduled": report.scheduled,
        "taken over": report.rescued,
        "left for the next dispatch": report.left,
        "API calls": report.calls,
        "API calls throttled": report.throttled,
        "API share of time": min(1.0, round(share, 3)),
        "seconds": round(report.seconds, 3),
        "oldest waiting (seconds)": oldest_age(waiting_jobs) or 0.0,
        "rows": dg.MetadataValue.md(rows_table(report.rows)),
    }


def report_frame(report: Report) -> pd.DataFrame:
    """The value of ``dispatched_jobs``: a line for each row, with text and exact integers."""
    records = [_record(row) for row in report.rows]
    frame = pd.DataFrame(records, columns=list(_COLUMNS), dtype=object)
    return frame.astype(dict.fromkeys(("run_id", "databricks_run_id", "repair_id"), "Int64"))


def _record(row: ReportRow) -> dict[str, Any]:
    return {**{name: getattr(row, name) for name in _COLUMNS}, "branch": row.branch.value, "outcome": row.outcome.value}


def rows_table(rows: list[ReportRow]) -> str:
    """A Markdown table, those that a person should look at first."""
    if not rows:
        return "No row was dispatched."
    first = sorted(rows, key=lambda row: row.outcome in (Outcome.ACCEPTED, Outcome.ADOPTED))
    lines = ["| row | branch | outcome | run | status | reason |", "| --: | --- | --- | --- | --- | --- |"]
    lines += [_line(row) for row in first[:_SHOWN]]
    rest = len(rows) - _SHOWN
    return "\n".join(lines) + (f"\n\n{rest} more rows are not shown; `pm explain` has each." if rest > 0 else "")


def _line(row: ReportRow) -> str:
    run = f"[{row.databricks_run_id}]({row.page_url})" if row.page_url else str(row.databricks_run_id or "")
    cells = (row.run_id, row.branch.value, row.outcome.value, run, row.control_status or "", cell(row.reason))
    return "| " + " | ".join(str(value) for value in cells) + " |"


def cell(text: str) -> str:
    """Text that cannot leave its cell: a reason may quote a row's own values."""
    flat = " ".join(text.split())
    short = flat if len(flat) <= _REASON_LENGTH else f"{flat[: _REASON_LENGTH - 3]}..."
    escaped = {"|": "\\|", "<": "&lt;", "[": "\\[", "]": "\\]", "`": "'", "!": "\\!"}
    return "".join(escaped.get(letter, letter) for letter in short)
