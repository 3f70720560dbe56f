"""What a dispatch reports: counts by branch and outcome, and what became of each row."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from pm_dagster.dispatch.model import Entry, EntryState, Outcome, RowOutcome
from pm_dagster.dispatch.ports import Closed
from pm_dagster.dispatch.waiting_job import Branch, RawRow, RefusedRow, row_key, sort_rows

#: Begins the line of output by which a dispatch on a cluster tells its numbers to whoever started it.
_LINE_BEGINS = "process_manager report "
#: The outcomes that are counted for each branch, in the order of the report.
COUNTED = (Outcome.ACCEPTED, Outcome.ADOPTED, Outcome.DEFERRED, Outcome.QUARANTINED)
_ANSWERED = (Outcome.ACCEPTED, Outcome.ADOPTED, Outcome.QUARANTINED)
_LEFT_REASON = "not sent in this pass (deadline, stop, or another dispatcher has it); the next pass reads it again"


@dataclass(frozen=True)
class ReportRow:
    """One row after the dispatch, for people: the last form of a row, which every report shows in its own way.

    Attributes:
        run_id: The control plane's id of the row; None when it has none that can be read.
        branch: What the row needed.
        outcome: How it left the dispatch.
        reason: Why, for people.
        databricks_run_id: The run that stands for the row.
        repair_id: The repair of that run that stands for the row.
        page_url: The run's page.
        control_status: What the control table says now; None when that is not known.
        since: When the work arrived; None when that is not known.
        parameters: The job parameters as the row was read, empty for a row that this dispatch did not read.
    """

    run_id: int | None
    branch: Branch
    outcome: Outcome
    reason: str
    databricks_run_id: int | None = None
    repair_id: int | None = None
    page_url: str | None = None
    control_status: str | None = None
    since: datetime | None = None
    parameters: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Report:
    """The result of one dispatch.

    Attributes:
        read: Rows that were looked at.
        rescued: Entries that a dead dispatcher had left.
        rows: The rows of which something was decided or done.
        unsent: The other rows that were looked at; their outcome is ``left``.
        scheduled: Rows that were written as SCHEDULED.
        left: Entries that were claimed but not sent before the deadline.
        calls: Calls to the Jobs API.
        api_seconds: Their duration, summed over all calls.
        seconds: Duration of the dispatch.
        throttled: Calls that were answered 429.
    """

    read: int = 0
    rescued: int = 0
    rows: list[ReportRow] = field(default_factory=list)
    unsent: list[ReportRow] = field(default_factory=list)
    scheduled: int = 0
    left: int = 0
    calls: int = 0
    api_seconds: float = 0.0
    seconds: float = 0.0
    throttled: int = 0

    def counts(self, branch: Branch) -> dict[str, int]:
        """Rows of the branch by outcome."""
        seen = Counter(row.outcome for row in self.rows if row.branch is branch)
        return {outcome.value: seen[outcome] for outcome in COUNTED}

    def as_json(self) -> dict[str, Any]:
        """The object that ``pm dispatch --json`` prints; its keys are a contract."""
        return {
            "read": self.read,
            "taken_over": self.rescued,
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


def report_rows(
    read: Sequence[RawRow],
    refused: Iterable[RefusedRow],
    entries: Sequence[Entry],
    outcomes: Mapping[int, RowOutcome],
    closed: Iterable[Closed],
) -> list[ReportRow]:
    """What became of each row of which something was decided or done.

    Args:
        read: The rows that were looked at.
        refused: Rows that never became waiting jobs.
        entries: The entries that the dispatch claimed.
        outcomes: What was decided, by entry id.
        closed: What closing wrote, also for entries whose answer an earlier dispatch had recorded.
    """
    by_key = {row_key(row): row for row in reversed(read)}
    by_id = {item.entry_id: item for item in closed}
    rows = [_of_row(row.row, ReportRow(row.run_id, row.branch, Outcome.QUARANTINED, row.reason)) for row in refused]
    told = [_decided(outcome, by_id.get(entry_id)) for entry_id, outcome in outcomes.items()]
    claimed = {entry.entry_id: entry for entry in entries}
    for entry_id, item in by_id.items():
        if entry_id not in outcomes and entry_id in claimed and item.outcome in _ANSWERED:
            told.append(_answered_earlier(claimed[entry_id], item, item.outcome))
    told += [
        ReportRow(entry.run_id, entry.branch, Outcome.DEFERRED, entry.reason)
        for entry in entries
        if entry.state is EntryState.DEFERRED
    ]
    return rows + [_of_row(by_key.get(row.run_id), row) for row in told]


def unsent_rows(read: Sequence[RawRow], told: Sequence[ReportRow]) -> list[ReportRow]:
    """The rows that were looked at and that ``told`` does not name: nothing was sent for them."""
    named = {row.run_id for row in told}
    jobs, _ = sort_rows([row for row in read if row_key(row) not in named])
    return [
        ReportRow(job.run_id, job.branch, Outcome.LEFT, _LEFT_REASON, since=job.since, parameters=job.parameters)
        for job in jobs
    ]


def _of_row(read: RawRow | None, row: ReportRow) -> ReportRow:
    """The row with what was read of it."""
    if read is None:
        return row
    texts = {name: "" if value is None else str(value) for name, value in read.parameters.items()}
    return replace(row, since=read.since, parameters=texts)


def _decided(outcome: RowOutcome, closed: Closed | None) -> ReportRow:
    return ReportRow(
        run_id=outcome.entry.run_id,
        branch=outcome.entry.branch,
        outcome=outcome.outcome,
        reason=outcome.reason,
        databricks_run_id=outcome.run_id,
        repair_id=outcome.repair_id,
        page_url=closed.page_url if closed else None,
        control_status=closed.control_status if closed else None,
    )


def _answered_earlier(entry: Entry, closed: Closed, outcome: Outcome) -> ReportRow:
    return ReportRow(
        run_id=entry.run_id,
        branch=entry.branch,
        outcome=outcome,
        reason=f"{closed.reason} (answer recorded by an earlier dispatch)",
        databricks_run_id=closed.accepted_run_id,
        repair_id=closed.accepted_repair_id,
        page_url=closed.page_url,
        control_status=closed.control_status,
    )


def report_line(report: Report) -> str:
    """The numbers of a report as one line of output; ``report_in`` reads it."""
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
