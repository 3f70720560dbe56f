"""What became of every row that was read, and of what was taken over: a line each.

Put here: which lines there are, and their order. Keep out: how they are shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from pm_dagster.dispatch.model import Outcome
from pm_dagster.dispatch.report import Report, ReportRow
from pm_dagster.dispatch.waiting_job import RawRow, WaitingJob, sort_rows

LEFT = "left"
_LEFT_REASON = "not sent in this pass (deadline, stop, or another dispatcher has it); the next one sees it again"
#: What needs eyes comes first.
_ORDER = (
    Outcome.QUARANTINED.value,
    Outcome.DEFERRED.value,
    LEFT,
    Outcome.WITHDRAWN.value,
    Outcome.ADOPTED.value,
    Outcome.ACCEPTED.value,
)


@dataclass(frozen=True)
class Line:
    """One waiting job after the pass. ``status`` is what the control table says now, where we know it."""

    run_id: int | None
    branch: str
    outcome: str
    reason: str
    status: str | None = None
    databricks_run_id: int | None = None
    repair_id: int | None = None
    page_url: str | None = None
    since: datetime | None = None
    parameters: Mapping[str, str] | None = None


def outcome_lines(report: Report, rows: Sequence[RawRow]) -> list[Line]:
    """A line for each row of the report and for each of ``rows`` that it does not mention."""
    jobs, refused = sort_rows(rows)
    by_id = {job.run_id: job for job in jobs}
    raw = {(row.run_id, row.reason): row.row for row in refused}
    lines = [_line(row, by_id.get(row.run_id or 0) or raw.get((row.run_id, row.reason))) for row in report.rows]
    mentioned = {row.run_id for row in report.rows}
    lines += [_left(job) for job in jobs if job.run_id not in mentioned]
    return sorted(lines, key=lambda line: (_ORDER.index(line.outcome), line.run_id or 0))


def _line(row: ReportRow, source: WaitingJob | RawRow | None) -> Line:
    values = source.parameters if source else {}
    return Line(
        row.run_id,
        row.branch.value,
        row.outcome.value,
        row.reason,
        status=row.control_status,
        databricks_run_id=row.databricks_run_id,
        repair_id=row.repair_id,
        page_url=row.page_url,
        since=source.since if source else row.since,
        parameters={name: "" if value is None else str(value) for name, value in values.items()},
    )


def _left(job: WaitingJob) -> Line:
    return Line(job.run_id, job.branch.value, LEFT, _LEFT_REASON, since=job.since, parameters=job.parameters)
