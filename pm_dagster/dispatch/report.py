"""What a dispatch reports: counts by branch and outcome, and a line per row."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from pm_dagster.dispatch.model import Outcome, RowOutcome
from pm_dagster.dispatch.ports import Closed
from pm_dagster.dispatch.waiting_job import Branch, RawRow, RefusedRow

#: Begins the line of output by which a dispatch on a cluster tells its numbers to whoever started it.
_LINE_BEGINS = "process_manager report "
#: The outcomes that are counted for each branch, in the order of the report.
COUNTED = (Outcome.ACCEPTED, Outcome.ADOPTED, Outcome.DEFERRED, Outcome.QUARANTINED)


@dataclass(frozen=True)
class ReportRow:
    """One row after the dispatch. ``control_status`` is what the control table says now, None if unknown."""

    run_id: int | None
    branch: Branch
    outcome: Outcome
    reason: str
    databricks_run_id: int | None = None
    repair_id: int | None = None
    page_url: str | None = None
    control_status: str | None = None
    since: datetime | None = None


@dataclass
class Report:
    """The result of one dispatch.

    ``read`` rows came from the view, ``taken_over`` were left by a dead dispatcher, ``scheduled`` were written as
    SCHEDULED; ``left`` were claimed but not sent before the deadline; ``further`` are the rows that were read in place
    of others. Times are seconds; ``api_seconds`` sums over calls.
    """

    read: int = 0
    taken_over: int = 0
    rows: list[ReportRow] = field(default_factory=list)
    scheduled: int = 0
    left: int = 0
    calls: int = 0
    api_seconds: float = 0.0
    seconds: float = 0.0
    throttled: int = 0
    oldest_waiting_seconds: float | None = None
    further: list[RawRow] = field(default_factory=list)

    def counts(self, branch: Branch) -> dict[str, int]:
        """Rows of the branch by outcome."""
        seen = Counter(row.outcome for row in self.rows if row.branch is branch)
        return {outcome.value: seen[outcome] for outcome in COUNTED}

    def as_json(self) -> dict[str, Any]:
        """The object that ``pm dispatch --json`` prints; its keys are a contract."""
        return {
            "read": self.read,
            "taken_over": self.taken_over,
            "new": self.counts(Branch.NEW),
            "repair": self.counts(Branch.REPAIR),
            "scheduled": self.scheduled,
            "withdrawn": sum(row.outcome is Outcome.WITHDRAWN for row in self.rows),
            "left": self.left,
            "calls": self.calls,
            "throttled": self.throttled,
            "api_seconds": round(self.api_seconds, 3),
            "seconds": round(self.seconds, 3),
        }


def refused_rows(refused: Iterable[RefusedRow]) -> list[ReportRow]:
    """Report lines of rows that never became waiting jobs."""
    return [ReportRow(row.run_id, row.branch, Outcome.QUARANTINED, row.reason, since=row.row.since) for row in refused]


def outcome_rows(outcomes: Iterable[RowOutcome], closed: Sequence[Closed]) -> list[ReportRow]:
    """Report lines of rows that were sent, with what closing wrote."""
    by_id = {item.entry_id: item for item in closed}
    return [_outcome_row(outcome, by_id.get(outcome.entry.entry_id)) for outcome in outcomes]


def _outcome_row(outcome: RowOutcome, closed: Closed | None) -> ReportRow:
    entry = outcome.entry
    return ReportRow(
        run_id=entry.run_id,
        branch=entry.branch,
        outcome=outcome.outcome,
        reason=outcome.reason,
        databricks_run_id=outcome.run_id,
        repair_id=outcome.repair_id,
        page_url=closed.page_url if closed else None,
        control_status=closed.control_status if closed else None,
    )


def report_line(report: Report) -> str:
    """The numbers of a report as one line of output, which ``report_in`` finds again."""
    return _LINE_BEGINS + json.dumps(report.as_json())


def report_in(output: str) -> dict[str, Any] | None:
    """The numbers of the last report line in a program's output; None when there is none, or it was cut."""
    for line in reversed(output.splitlines()):
        _, begins, numbers = line.partition(_LINE_BEGINS)
        if begins:
            try:
                found = json.loads(numbers)
            except ValueError:
                continue
            return found if isinstance(found, dict) else None
    return None
