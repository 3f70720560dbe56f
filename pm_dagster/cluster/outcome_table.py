"""What became of each row, as plain text: the cluster has no library for tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pm_dagster.dispatch.model import Outcome
from pm_dagster.dispatch.report import ReportRow
from pm_dagster.text import escape_controls

SHOWN = 60
_REASON_WIDTH = 90
_TITLES = ("run id", "branch", "outcome", "status", "Databricks run", "reason")
#: What a person has to look at comes first.
_ORDER = (
    Outcome.QUARANTINED,
    Outcome.DEFERRED,
    Outcome.LEFT,
    Outcome.WITHDRAWN,
    Outcome.ADOPTED,
    Outcome.ACCEPTED,
)


def by_urgency(rows: Iterable[ReportRow]) -> list[ReportRow]:
    """The rows in the order in which a person wants to see them."""
    return sorted(rows, key=lambda row: (_ORDER.index(row.outcome), row.run_id or 0))


def table(rows: Sequence[ReportRow]) -> str:
    """The first rows, and how many more there are."""
    cells = [_TITLES, *(_cells(row) for row in rows[:SHOWN])]
    widths = [max(len(line[column]) for line in cells) for column in range(len(_TITLES) - 1)]
    shown = ["  ".join([*map(str.ljust, line[:-1], widths), line[-1]]).rstrip() for line in cells]
    more = len(rows) - SHOWN
    return "\n".join(shown + ([f"... and {more} more, all {rows[-1].outcome.value} or better"] if more > 0 else []))


def _cells(row: ReportRow) -> tuple[str, ...]:
    reason = escape_controls(row.reason)
    return (
        "-" if row.run_id is None else str(row.run_id),
        row.branch.value,
        row.outcome.value,
        escape_controls(row.control_status or ""),
        "" if row.databricks_run_id is None else str(row.databricks_run_id),
        reason if len(reason) <= _REASON_WIDTH else f"{reason[: _REASON_WIDTH - 3]}...",
    )
