"""The ControlPlane port over a dictionary that several dispatchers may share."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from pm_dagster.config.settings import Settings
from pm_dagster.dispatch.in_doubt import TO_CLOSE, is_in_doubt, rescued
from pm_dagster.dispatch.model import Entry, EntryState, KnownRun, Outcome, TokenSubject, idempotency_token
from pm_dagster.dispatch.ports import Backlog, BudgetChange, Change, Closed, Event, SignOfLife, Written, taken_at_once
from pm_dagster.dispatch.rules import correction, names_only_our_run
from pm_dagster.dispatch.untakeable import RowFacts, Untakeable, looks_alike, untakeable
from pm_dagster.dispatch.waiting_job import RawRow, RefusedRow, WaitingJob, sort_rows
from pm_dagster.errors import ProcessManagerError
from pm_dagster_tests.fakes.database import InMemoryDatabase, Record, Registered, Row
from pm_dagster_tests.fakes.records import (
    apply,
    asked_again,
    claimed,
    closed,
    commit,
    known,
    refused,
    supersede,
    withdraw,
)

__all__ = ["InMemoryControlPlane", "InMemoryDatabase", "Row"]

_UNRESOLVED = (EntryState.SENDING, EntryState.ACCEPTED)
_LATEST = datetime.max.replace(tzinfo=UTC)


def _kept(row: Row) -> bool:
    """Whether the row can be neither locked nor written by us."""
    return row.locked or row.hidden


class InMemoryControlPlane:
    """See ``pm_dagster.dispatch.ports.ControlPlane``. ``faults`` holds errors that the named methods raise next."""

    def __init__(self, database: InMemoryDatabase, settings: Settings | None = None, actor: str = "test") -> None:
        self.database = database
        self._settings = settings or Settings()
        self._me = next(database.numbers)
        self._actor = actor
        database.alive.add(self._me)
        self.faults: dict[str, list[ProcessManagerError]] = {}

    def backlog(self) -> Backlog:
        """Count what waits."""
        self._meet("backlog")
        stuck = self.untakeable(10**9)
        free = [row for row in self._free() if row.raw.run_id is not None and not row.hidden]
        ready = free if any(not row.locked for row in free) else []
        ages = [max(0.0, (datetime.now(UTC) - row.raw.since).total_seconds()) for row in ready if row.raw.since]
        held = [record for record in self.database.ledger.values() if record.open]
        orphans = [record for record in held if self._is_orphan(record)]
        unwritable = sum(record.entry.state is not EntryState.SENDING and self._is_locked(record) for record in orphans)
        return Backlog(
            len(ready) + len(orphans) - unwritable,
            max(ages, default=None),
            backing_off=sum(r.entry.state is EntryState.DEFERRED and not r.rested for r in held),
            quarantined=sum(r.entry.state is EntryState.QUARANTINED for r in held),
            in_hand=sum(r.owner in self.database.alive for r in held),
            extra={"unresolved": len(orphans)},
            untakeable=len(stuck),
            locked=len(free) - len(ready) + unwritable,
        )

    def waiting(self, limit: int, seen: Collection[int] | None = None) -> list[RawRow]:
        """The rows that a dispatch may take, oldest first."""
        self._meet("waiting")
        left_out = frozenset(seen or ())
        rows = [row.raw for row in self._free() if row.raw.run_id not in left_out]
        without = [row for row in rows if row.run_id is None and seen is None]
        rows = [row for row in rows if row.run_id is not None]
        oldest = sorted(rows, key=lambda row: (self._comes_back(row.run_id), row.since or _LATEST, row.run_id))
        return oldest[:limit] + without

    def has_work(self, *, ours: bool = False) -> bool:
        """Whether a dispatch would find anything."""
        self._meet("has_work")
        mine = [r for r in self.database.ledger.values() if r.open and r.owner == self._me and self._is_left_over(r)]
        held = [record for record in self.database.ledger.values() if record.open]
        left = any(self._is_orphan(record) for record in held) or (ours and any(record.rested for record in mine))
        return left or any(row.raw.run_id is not None for row in self._free())

    def untakeable(self, limit: int, run_ids: Collection[int] | None = None) -> list[Untakeable]:
        """Rows that the view shows and the table does not call waiting, or hides from us."""
        rows = [row for row in self.database.rows.values() if run_ids is None or row.raw.run_id in run_ids]
        told = [untakeable(self._facts(row), self._settings) for row in rows if self._is_shown(row)]
        return [row for row in told if row is not None][:limit]

    def held(self, run_ids: Collection[int]) -> set[int]:
        """Those that their owner holds."""
        return {run_id for run_id in run_ids if self._waits(run_id) and self.database.rows[run_id].locked}

    def shown(self, run_ids: Collection[int]) -> list[RawRow]:
        """Those that still wait."""
        return [self.database.rows[run_id].raw for run_id in run_ids if self._waits(run_id)]

    def claim(self, jobs: Sequence[WaitingJob]) -> list[Entry]:
        """Take the ones that still wait and are free, as they are now."""
        self._meet("claim")
        current, _ = self._current([job.run_id for job in jobs])
        to_be_had = [job for job in current if self._waits(job.run_id) and not _kept(self.database.rows[job.run_id])]
        wanted = {job.run_id: job for job in to_be_had if self._is_free(job.run_id)}
        return self._read([self._take(claimed(wanted[run_id])) for run_id in sorted(wanted)])

    def refuse(self, rows: Sequence[RefusedRow]) -> list[RefusedRow]:
        """Record and close rows still to be refused, but not those that somebody works on."""
        self._meet("refuse")
        _, refused_now = self._current([row.run_id for row in rows])
        wanted = {row.run_id: row for row in refused_now if row.run_id is not None and self._is_free(row.run_id)}
        for run_id, row in wanted.items():
            record = self._take(refused(run_id, row.branch))
            record.outcome, record.reason = Outcome.QUARANTINED, row.reason
            self._close_one(record)
        return list(wanted.values())

    def rescue(self, limit: int) -> list[Entry]:
        """Take what the dead left."""
        self._meet("rescue")
        left_over = [r for r in self.database.ledger.values() if self._is_left_over(r)]
        return [replace(entry, rescued=True) for entry in self._rescued(left_over, limit)]

    def resume(self, entry_ids: Collection[int]) -> list[Entry]:
        """The named entries as they stand."""
        self._meet("resume")
        named = self._named(entry_ids)
        others = {record.entry.entry_id for record in named if record.owner != self._me}
        taken = self._rescued(named, len(entry_ids))
        return [now for entry in taken for now in (self._as_now(entry) if entry.entry_id in others else [entry])]

    def intend(self, entries: Sequence[Entry]) -> set[int]:
        """Commit the intents of entries that are ours and still wanted, and withdraw the others."""
        return self.record_and_intend([], entries).granted

    def record(self, changes: Sequence[Change]) -> set[int]:
        """Write what was learned; a run that was found and is another row's is not taken."""
        return self.record_and_intend(changes, []).passed_over

    def record_and_intend(self, changes: Sequence[Change], entries: Sequence[Entry]) -> Written:
        """All of it, or nothing."""
        for method, wanted in (("record", changes), ("intend", entries)):
            if wanted:
                self._meet(method)
        return Written(self._record(changes), self._intend(entries))

    def _intend(self, entries: Sequence[Entry]) -> set[int]:
        granted = set()
        for entry in entries:
            for record in self._ours([entry.entry_id]):
                words, asks = self._corrected(record)
                if words:
                    if not is_in_doubt(entry):
                        self._take_corrected(record, words, asks)
                elif self._may_send(record, entry):
                    commit(record, entry)
                    granted.add(record.entry.entry_id)
                elif not is_in_doubt(entry):
                    withdraw(record)
        return granted

    def _record(self, changes: Sequence[Change]) -> set[int]:
        assert len({change.entry_id for change in changes}) == len(changes), "one statement writes an entry once"
        others = {change.entry_id for change in changes if change.found and self._is_others(change)}
        others |= taken_at_once([change for change in changes if change.entry_id not in others])
        for change in changes:
            for record in self._ours([change.entry_id]):
                apply(record, change.passed_over() if change.entry_id in others else change)
        return others

    def close(self, entry_ids: Collection[int], go_on: Callable[[], bool] = lambda: True) -> list[Closed]:  # noqa: ARG002 never slow
        """Write the control table; entries closed before are told again."""
        self._meet("close")
        for record in self._ours(entry_ids):
            words, asks = self._corrected(record) if record.entry.state in TO_CLOSE else ("", None)
            run_id = record.accepted_run_id
            if words and not (run_id is not None and names_only_our_run(record.entry, asks, run_id)):
                supersede(record, words)
            elif record.entry.state in TO_CLOSE:
                self._close_one(record)
        named = self._named(entry_ids)
        told = [r for r in named if r.superseded or r.entry.state in (EntryState.SCHEDULED, EntryState.QUARANTINED)]
        return [closed(record, self.database.rows.get(record.entry.run_id)) for record in told]

    def known_runs(self, databricks_run_ids: Collection[int]) -> list[KnownRun]:
        """What the ledger knows of these runs, the newest first."""
        self._meet("known_runs")
        records = list(reversed(self.database.ledger.values()))
        return [item for run_id in databricks_run_ids for r in records for item in known(r, run_id, self._table())]

    def share_budget(self, workspace: str, change: BudgetChange) -> bool:
        """Change the record while nobody else does; nothing is shared where the database has no clock."""
        self._meet("share_budget")
        clock = self.database.clock
        if clock is None:
            return False
        with self.database.budget_lock:
            told = self.database.budgets.get(workspace)
            record = change(None if told is None else json.loads(told), clock())
            self.database.budgets[workspace] = json.dumps(record)
        return True

    def register(self) -> None:
        """Be known by name."""
        self._meet("register")
        self.database.registered[self._me] = Registered(self._actor)

    def signs_of_life(self, actors: Collection[str]) -> dict[str, SignOfLife]:
        """What is known of the dispatchers with these names."""
        self._meet("signs_of_life")
        return {actor: sign for actor in actors for sign in self._sign_of_life(actor)}

    def heartbeat(self) -> None:
        """Be seen: a dispatcher in memory lives until it ends."""
        if self._me in self.database.registered:
            self.database.registered[self._me].seen = time.monotonic()

    def end(self) -> None:
        """Leave."""
        self.database.alive.discard(self._me)
        if self._me in self.database.registered:
            self.database.registered[self._me].left = True

    def _is_others(self, change: Change) -> bool:
        row = self.database.ledger[change.entry_id].entry.run_id
        records = self.database.ledger.values()
        return any(r.accepted_run_id == change.accepted_run_id and r.entry.run_id != row for r in records)

    def _table(self) -> str:
        return self._settings.control_table

    def _corrected(self, record: Record) -> tuple[str, WaitingJob | None]:
        """How the row of an entry was corrected since, if it still waits."""
        jobs, broken = self._current([record.entry.run_id])
        now, refused_now = next(iter(jobs), None), next(iter(broken), None)
        return correction(record.entry, now, refused_now, written=True)

    def _take_corrected(self, record: Record, words: str, asks: WaitingJob | None) -> None:
        if asks is None:
            supersede(record, words)
        else:
            self._take(claimed(asks))
            record.events.append(Event("corrected", words))

    def _current(self, run_ids: Sequence[object]) -> tuple[list[WaitingJob], list[RefusedRow]]:
        return sort_rows([self.database.rows[i].raw for i in run_ids if self._waits(i)])

    def _meet(self, method: str) -> None:
        if self.faults.get(method):
            raise self.faults[method].pop(0)
        self.database.alive.add(self._me)

    def _sign_of_life(self, actor: str) -> list[SignOfLife]:
        """Of all who have the name; none if nobody has."""
        known = {number: one for number, one in self.database.registered.items() if one.actor == actor}
        if not known:
            return []
        alive = any(number in self.database.alive for number in known)
        seen = max(one.seen for one in known.values())
        return [SignOfLife(alive, any(one.left for one in known.values()), time.monotonic() - seen)]

    def _named(self, entry_ids: Collection[int]) -> list[Record]:
        return [self.database.ledger[i] for i in sorted(set(entry_ids)) if i in self.database.ledger]

    def _ours(self, entry_ids: Collection[int]) -> list[Record]:
        return [record for record in self._named(entry_ids) if record.open and record.owner == self._me]

    def _free(self) -> list[Row]:
        return [row for run_id, row in self.database.rows.items() if self._waits(run_id) and self._is_free(run_id)]

    def _is_free(self, run_id: object) -> bool:
        """Whether no entry stands against taking the row."""
        record = self.database.newest(run_id)
        if record is None or not record.open:
            return True
        if record.entry.state is EntryState.DEFERRED:
            return record.rested
        return record.entry.state is EntryState.CLAIMED and self._may_own(record)

    def _is_shown(self, row: Row) -> bool:
        waiting = self._settings.status_waiting
        shown = looks_alike(row.status, waiting) if self.database.loose_view else row.status == waiting
        return shown and self._is_free(row.raw.run_id)

    def _facts(self, row: Row) -> RowFacts:
        run_id = row.raw.run_id
        return RowFacts(
            run_id,
            has_place=run_id is not None,
            status=row.status,
            waits=row.status == self._settings.status_waiting,
            lockable=not row.hidden,
            known=self.database.newest(run_id) is not None,
        )

    def _is_locked(self, record: Record) -> bool:
        row = self.database.rows.get(record.entry.run_id)
        return row is not None and row.locked

    def _comes_back(self, run_id: object) -> bool:
        record = self.database.newest(run_id)
        return record is not None and record.open and record.entry.state is EntryState.DEFERRED

    def _waits(self, run_id: object) -> bool:
        row = self.database.rows.get(run_id)
        return row is not None and row.status == self._settings.status_waiting

    def _may_own(self, record: Record) -> bool:
        return record.owner == self._me or record.owner not in self.database.alive

    def _may_send(self, record: Record, entry: Entry) -> bool:
        state = record.entry.state
        if state is EntryState.SENDING and is_in_doubt(entry):
            return True
        return state in (EntryState.CLAIMED, EntryState.SENDING) and self._waits(record.entry.run_id)

    def _is_orphan(self, record: Record) -> bool:
        return self._is_left_over(record) and record.rested and record.owner not in self.database.alive

    def _is_left_over(self, record: Record) -> bool:
        unwritten = record.entry.state is EntryState.QUARANTINED and record.entry.run_id in self.database.rows
        return unwritten or record.entry.state in _UNRESOLVED

    def _rescued(self, records: Sequence[Record], limit: int) -> list[Entry]:
        taken = [record for record in records if record.open and record.rested and self._may_own(record)][:limit]
        for record in taken:
            record.owner = self._me
        return self._read(taken)

    def _as_now(self, entry: Entry) -> list[Entry]:
        """The entry with what its row says now, as far as nothing was sent; none when the row is to be refused."""
        if entry.state is not EntryState.CLAIMED or not entry.waiting:
            return [entry]
        current, _ = self._current([entry.run_id])
        return self._read([self._take(claimed(job)) for job in current])

    def _read(self, records: Sequence[Record]) -> list[Entry]:
        """The entries as the ledger and the control table have them; one in SENDING may have taken effect."""
        entries = [
            replace(
                rescued(record.entry),
                waiting=self._waits(record.entry.run_id),
                earlier_run_ids=self.database.earlier_runs(record.entry),
                note=self.database.note(record.entry),
            )
            for record in records
        ]
        entries = [self._with_correction(entry) for entry in entries]
        return sorted(entries, key=lambda entry: entry.entry_id)

    def _with_correction(self, entry: Entry) -> Entry:
        if entry.state is not EntryState.SENDING:
            return entry
        words, asks = self._corrected(self.database.ledger[entry.entry_id])
        return replace(entry, correction=words, asks=asks) if words else entry

    def _take(self, wanted: Entry) -> Record:
        """Write the entry as ours: over the open one, else as the next generation."""
        record = self.database.newest(wanted.run_id)
        if record is None or not record.open:
            number = record.entry.generation + 1 if record else 1
            record = Record(replace(wanted, entry_id=next(self.database.numbers), generation=number), self._me)
            self.database.ledger[record.entry.entry_id] = record
        record.entry = replace(
            wanted,
            entry_id=record.entry.entry_id,
            generation=record.entry.generation,
            idempotency_token=self._token(wanted, record.entry.generation),
            attempts=record.entry.attempts,
            ambiguous=record.entry.ambiguous,
            intent_at=record.entry.intent_at,
        )
        record.owner, record.outcome, record.reason = self._me, None, ""
        return record

    def _token(self, wanted: Entry, generation: int) -> str:
        if not wanted.job_id:
            return ""
        asked = TokenSubject(wanted.job_id, wanted.parameters, self.database.rows[wanted.run_id].raw.since)
        return idempotency_token("test", self._settings.control_table, wanted.run_id, generation, asked)

    def _close_one(self, record: Record) -> None:
        """A refused row that the control table lacks stays refused."""
        row = self.database.rows.get(record.entry.run_id)
        if (row is None and record.entry.state is EntryState.QUARANTINED) or (row is not None and _kept(row)):
            return
        if row is not None and row.status == self._settings.status_waiting and not asked_again(record, row):
            row.status = self._status_for(record)
            row.databricks_run_id = record.accepted_run_id or row.databricks_run_id
            row.raw = replace(row.raw, previous_run_id=record.accepted_run_id or row.raw.previous_run_id)
            row.message = record.reason
        record.open = False
        if record.entry.state is EntryState.ACCEPTED:
            record.entry = replace(record.entry, state=EntryState.SCHEDULED)

    def _status_for(self, record: Record) -> str:
        if record.entry.state is EntryState.QUARANTINED:
            return self._settings.status_failed
        return self._settings.status_succeeded if record.succeeded else self._settings.status_scheduled
