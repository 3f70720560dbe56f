"""What a dispatch reports: counts by branch and outcome, and what became of each row."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
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


@dataclass(frozen=True, slots=True)
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
        left: Rows that were to be taken, and were not sent before the deadline or a stop request.
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

    def and_then(self, later: Report) -> Report:
        """This report and that of a later pass of the same dispatch, as one. A row that waited for it is told once."""
        told = {row.run_id for row in (*later.rows, *later.unsent)}
        waited = {row.run_id for row in self.rows if row.outcome is Outcome.DEFERRED} & told
        return Report(
            read=self.read + later.read,
            rescued=self.rescued + later.rescued,
            rows=[row for row in self.rows if row.run_id not in waited] + later.rows,
            unsent=[row for row in self.unsent if row.run_id not in told] + later.unsent,
            scheduled=self.scheduled + later.scheduled,
            left=self.left + later.left,
            calls=self.calls + later.calls,
            api_seconds=self.api_seconds + later.api_seconds,
            seconds=later.seconds,
            throttled=self.throttled + later.throttled,
        )

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


class Tally:
    """What becomes of the rows of a dispatch, told as it happens. It keeps a line for each row, and no more.

    A row that was looked at is kept as it was read until something is decided of it.
    """

    def __init__(self) -> None:
        self.read = 0
        self.rescued = 0
        self.scheduled = 0
        self._looked_at: dict[int, RawRow] = {}
        self._refused: list[ReportRow] = []
        self._decided: dict[int, ReportRow] = {}
        #: What an earlier dispatch decided, and what was put off when it was claimed.
        self._others: list[ReportRow] = []
        #: Entries that closing will tell more of: decided here, and answered earlier.
        self.to_close: set[int] = set()
        self._answered: dict[int, Entry] = {}

    def looked_at(self, rows: Iterable[RawRow]) -> None:
        """Rows of the view that the dispatch tried to take, or would have taken; one that it had read counts once."""
        keyed = [(row_key(row), row) for row in rows]
        known = {key for key, _ in keyed if key in self._looked_at}
        for key, row in keyed:
            self.read += key not in known
            if key is not None:
                self._looked_at.setdefault(key, row)

    def refused(self, rows: Iterable[RefusedRow]) -> None:
        """Rows that never became waiting jobs."""
        for row in rows:
            told = ReportRow(row.run_id, row.branch, Outcome.QUARANTINED, row.reason)
            self._refused.append(_of_row(row.row, told))
            self._forget(row.run_id)

    def claimed(self, entries: Iterable[Entry]) -> None:
        """Entries that the dispatch works on."""
        for entry in entries:
            self.rescued += entry.rescued
            if entry.state is EntryState.DEFERRED:
                told = ReportRow(entry.run_id, entry.branch, Outcome.DEFERRED, entry.reason)
                self._others.append(self._whole(told))
                self._forget(entry.run_id)
            else:
                self._answered[entry.entry_id] = entry

    def knows(self, entry_id: int) -> bool:
        """Whether the entry was decided before."""
        return entry_id in self._decided

    def decided(self, outcome: RowOutcome) -> None:
        """How a row left the sending."""
        entry = outcome.entry
        self._answered.pop(entry.entry_id, None)
        row = ReportRow(
            run_id=entry.run_id,
            branch=entry.branch,
            outcome=outcome.outcome,
            reason=outcome.reason,
            databricks_run_id=outcome.run_id,
            repair_id=outcome.repair_id,
        )
        self._decided[entry.entry_id] = self._whole(row)
        if outcome.outcome in _ANSWERED or outcome.superseded:
            self.to_close.add(entry.entry_id)
        else:
            self._forget(entry.run_id)

    def closed(self, item: Closed) -> None:
        """What closing wrote; once more of the same entry changes nothing."""
        if item.entry_id in self.to_close:
            self.to_close.discard(item.entry_id)
            row = self._decided[item.entry_id]
            self._decided[item.entry_id] = replace(row, page_url=item.page_url, control_status=item.control_status)
        elif item.entry_id in self._answered:
            told = _answered_earlier(self._answered.pop(item.entry_id), item)
            self._others += [self._whole(told)] if told else []
        else:
            return
        self.scheduled += item.state is EntryState.SCHEDULED
        if not item.superseded:
            self._forget(item.run_id)

    def report(self, **numbers: Any) -> Report:  # noqa: ANN401 fields of the report
        """The report of all that was told; ``numbers`` are its other fields."""
        rows = [*self._refused, *self._decided.values(), *self._others]
        named = {row.run_id for row in rows}
        jobs, _ = sort_rows([row for key, row in self._looked_at.items() if key not in named])
        unsent = [
            ReportRow(job.run_id, job.branch, Outcome.LEFT, _LEFT_REASON, since=job.since, parameters=job.parameters)
            for job in jobs
        ]
        return Report(
            read=self.read, rescued=self.rescued, rows=rows, unsent=unsent, scheduled=self.scheduled, **numbers
        )

    def _whole(self, row: ReportRow) -> ReportRow:
        return _of_row(None if row.run_id is None else self._looked_at.get(row.run_id), row)

    def _forget(self, run_id: int | None) -> None:
        if run_id is not None:
            self._looked_at.pop(run_id, None)


def _of_row(read: RawRow | None, row: ReportRow) -> ReportRow:
    """The row with what was read of it."""
    if read is None:
        return row
    texts = {name: "" if value is None else str(value) for name, value in read.parameters.items()}
    return replace(row, since=read.since, parameters=texts)


def _answered_earlier(entry: Entry, closed: Closed) -> ReportRow | None:
    """What an earlier dispatch had decided; None when that was no answer."""
    if closed.outcome not in _ANSWERED:
        return None
    return ReportRow(
        run_id=entry.run_id,
        branch=entry.branch,
        outcome=closed.outcome,
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
