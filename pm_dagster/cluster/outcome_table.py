"""The lines of a pass as plain text: the cluster has no library for it. Put here: the look. Keep out: the lines."""

from __future__ import annotations

from collections.abc import Sequence

from pm_dagster.cluster.outcome_lines import Line
from pm_dagster.text import escape_controls

SHOWN = 60
_REASON_WIDTH = 90
_TITLES = ("run id", "branch", "outcome", "status", "Databricks run", "reason")


def table(lines: Sequence[Line]) -> str:
    """The first lines, and how many more there are."""
    cells = [_TITLES, *(_cells(line) for line in lines[:SHOWN])]
    widths = [max(len(row[column]) for row in cells) for column in range(len(_TITLES) - 1)]
    shown = ["  ".join([*map(str.ljust, row[:-1], widths), row[-1]]).rstrip() for row in cells]
    more = len(lines) - SHOWN
    return "\n".join(shown + ([f"... and {more} more, all {lines[-1].outcome} or better"] if more > 0 else []))


def _cells(line: Line) -> tuple[str, ...]:
    reason = escape_controls(line.reason)
    return (
        "-" if line.run_id is None else str(line.run_id),
        line.branch,
        line.outcome,
        escape_controls(line.status or ""),
        "" if line.databricks_run_id is None else str(line.databricks_run_id),
        reason if len(reason) <= _REASON_WIDTH else f"{reason[: _REASON_WIDTH - 3]}...",
    )
