"""The ControlPlane port over a dictionary that several dispatchers may share."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from pm_dagster.core.errors import ProcessManagerError
from pm_dagster.core.ledger_entry import Entry, EntryState, idempotency_token
from pm_dagster.core.ports import Backlog, Change, Closed, Intent, Outcome
from pm_dagster.core.settings import Settings
from pm_dagster.core.waiting_job import Branch, RawRow, RefusedRow, WaitingJob
from pm_dagster_tests.fakes.database import InMemoryDatabase, Record, Row

_UNSENT = (EntryState.CLAIMED, EntryState.DEFERRED)


class InMemoryControlPlane:
    """See ``pm_dagster.core.ports.ControlPlane``. ``faults`` holds errors that the named methods raise next."""

    def __init__(self, database: InMemoryDatabase, settings: Settings | None = None) -> None:
        self.database = database
        self._settings = settings or Settings()
        self._me = next(database.numbers)
        database.alive.add(self._me)
        self.faults: dict[str, list[ProcessManagerError]] = {}

    def backlog(self) -> Backlog:
        """Count what waits."""
        self._meet("backlog")
        ready = self._free()
        ages = [(datetime.now(UTC) - row.raw.since).total_seconds() for row in ready if row.raw.since]
        orphans = sum(self._orphaned(record) for record in self.database.ledger.values())
        closed = [r for r in self.database.ledger.values() if r.entry.state is EntryState.QUARANTINED]
        return Backlog(len(ready) + orphans, max(ages, default=None), quarantined=len(closed))

    def waiting(self, limit: int) -> list[RawRow]:
        """The rows that a dispatch may take."""
        self._meet("waiting")
        return [row.raw for row in self._free()[:limit]]

    def claim(self, jobs: Sequence[WaitingJob]) -> list[Entry]:
        """Take the free ones."""
        self._meet("claim")
        return [self._take(job) for job in jobs if self._is_free(self.database.rows[job.run_id])]

    def refuse(self, rows: Sequence[RefusedRow]) -> None:
        """Record and close refused rows."""
        self._meet("refuse")
        for row in rows:
            if row.run_id is None:
                continue
            entry = self._new_entry(row.run_id, 0, None, row.branch, {}, EntryState.QUARANTINED)
            self.database.ledger[entry.entry_id] = Record(
                entry, self._me, outcome=Outcome.QUARANTINED, reason=row.reason
            )
            self._close_one(self.database.ledger[entry.entry_id])

    def take_over(self, limit: int) -> list[Entry]:
        """Take what the dead left."""
        self._meet("take_over")
        left = [record for record in self.database.ledger.values() if self._orphaned(record)]
        return [self._own(record) for record in left[:limit]]

    def resume(self, entry_ids: Collection[int]) -> list[Entry]:
        """The named entries as they stand."""
        self._meet("resume")
        records = [self.database.ledger[entry_id] for entry_id in entry_ids]
        return [self._own(record) for record in records if record.open and self._may_own(record)]

    def intend(self, intents: Sequence[Intent]) -> set[int]:
        """Commit the intents of entries that are ours and still wanted."""
        self._meet("intend")
        granted = set()
        for intent in intents:
            record = self.database.ledger[intent.entry.entry_id]
            wanted = record.entry.state is EntryState.SENDING or self._waits(record)
            if record.open and record.owner == self._me and wanted:
                record.entry = replace(
                    record.entry,
                    state=EntryState.SENDING,
                    fresh_run=record.entry.fresh_run or intent.fresh_run,
                    sent_repair_id=intent.latest_repair_id,
                    intent_at=record.entry.intent_at or datetime.now(UTC),
                )
                granted.add(record.entry.entry_id)
        return granted

    def record(self, changes: Sequence[Change]) -> None:
        """Write what was learned."""
        self._meet("record")
        for change in changes:
            record = self.database.ledger[change.entry_id]
            if record.open and record.owner == self._me:
                _apply(record, change)

    def close(self, entry_ids: Collection[int]) -> list[Closed]:
        """Write the control table; entries closed before are told again."""
        self._meet("close")
        mine = [r for r in (self.database.ledger[i] for i in entry_ids) if r.owner == self._me]
        for record in mine:
            if record.open and record.entry.state in (EntryState.ACCEPTED, EntryState.QUARANTINED):
                self._close_one(record)
        return [self._closed(r) for r in mine if r.entry.state in (EntryState.SCHEDULED, EntryState.QUARANTINED)]

    def heartbeat(self) -> None:
        """Nothing: a dispatcher in memory lives until it ends."""

    def end(self) -> None:
        """Leave."""
        self.database.alive.discard(self._me)

    def _meet(self, method: str) -> None:
        if self.faults.get(method):
            raise self.faults[method].pop(0)
        self.database.alive.add(self._me)

    def _free(self) -> list[Row]:
        rows = [row for row in self.database.rows.values() if row.status == self._settings.status_waiting]
        return [row for row in rows if self._is_free(row)]

    def _is_free(self, row: Row) -> bool:
        record = self.database.newest(row.raw.run_id)
        if record is None or not record.open:
            return row.status == self._settings.status_waiting
        rested = record.not_before is None or record.not_before <= datetime.now(UTC)
        return record.entry.state in _UNSENT and rested and self._may_own(record)

    def _may_own(self, record: Record) -> bool:
        return record.owner == self._me or record.owner not in self.database.alive

    def _orphaned(self, record: Record) -> bool:
        unresolved = record.entry.state in (EntryState.SENDING, EntryState.ACCEPTED)
        return record.open and unresolved and record.owner not in self.database.alive

    def _own(self, record: Record) -> Entry:
        inherited = record.entry.taken_over or record.owner != self._me
        record.owner = self._me
        record.entry = replace(record.entry, taken_over=inherited, waiting=self._waits(record))
        return record.entry

    def _waits(self, record: Record) -> bool:
        row = self.database.rows.get(record.entry.run_id)
        return row is not None and row.status == self._settings.status_waiting

    def _take(self, job: WaitingJob) -> Entry:
        record = self.database.newest(job.run_id)
        if record is not None and record.open:
            record.owner = self._me
            record.entry = replace(record.entry, state=EntryState.CLAIMED, waiting=True)
            return record.entry
        entry = self._new_entry(
            job.run_id, job.job_id, job.previous_run_id, job.branch, job.parameters, EntryState.CLAIMED
        )
        self.database.ledger[entry.entry_id] = Record(entry, self._me)
        return entry

    def _new_entry(
        self,
        run_id: int,
        job_id: int,
        previous: int | None,
        branch: Branch,
        parameters: Mapping[str, str],
        state: EntryState,
    ) -> Entry:
        newest = self.database.newest(run_id)
        number = newest.entry.generation + 1 if newest else 1
        token = idempotency_token("test", self._settings.control_table, run_id, number, job_id)
        return Entry(
            next(self.database.numbers), run_id, number, branch, state, job_id, previous, dict(parameters), token
        )

    def _close_one(self, record: Record) -> None:
        row = self.database.rows.get(record.entry.run_id)
        if row is not None and row.status == self._settings.status_waiting:
            row.status = self._status_for(record)
            row.databricks_run_id, row.message = record.accepted_run_id, record.reason
        record.open = False
        if record.entry.state is EntryState.ACCEPTED:
            record.entry = replace(record.entry, state=EntryState.SCHEDULED)

    def _status_for(self, record: Record) -> str:
        if record.entry.state is EntryState.QUARANTINED:
            return self._settings.status_failed
        return self._settings.status_succeeded if record.succeeded else self._settings.status_scheduled

    def _closed(self, record: Record) -> Closed:
        row = self.database.rows.get(record.entry.run_id)
        return Closed(
            entry_id=record.entry.entry_id,
            run_id=record.entry.run_id,
            state=record.entry.state,
            outcome=record.outcome,
            accepted_run_id=record.accepted_run_id,
            accepted_repair_id=record.accepted_repair_id,
            page_url=record.page_url,
            reason=record.reason,
            control_status=row.status if row else None,
        )


def _apply(record: Record, change: Change) -> None:
    entry = record.entry
    record.entry = replace(
        entry,
        state=change.state or entry.state,
        attempts=entry.attempts + change.counts_as_attempt,
        ambiguous=entry.ambiguous or change.ambiguous,
    )
    record.outcome = change.outcome or record.outcome
    record.succeeded = record.succeeded or change.succeeded
    record.accepted_run_id = change.accepted_run_id or record.accepted_run_id
    record.accepted_repair_id = change.accepted_repair_id or record.accepted_repair_id
    record.page_url = change.page_url or record.page_url
    record.reason = change.reason or record.reason
    if change.defer_seconds is not None:
        record.not_before = datetime.now(UTC) + timedelta(seconds=change.defer_seconds)
    record.open = record.open and record.entry.state is not EntryState.WITHDRAWN
    record.events += change.events
