"""The control table and the ledger as one dispatcher sees them: the ControlPlane port over Postgres.

Put here: which statements make up each of the port's transactions. Keep out: the statements themselves.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from psycopg2.extensions import cursor as Cursor  # noqa: N812

from pm_dagster.config.settings import Settings
from pm_dagster.dispatch.in_doubt import is_in_doubt
from pm_dagster.dispatch.model import Entry, EntryState, KnownRun, Outcome, idempotency_token
from pm_dagster.dispatch.ports import Backlog, Change, Closed, Event, SignOfLife, taken_at_once
from pm_dagster.dispatch.rules import correction, names_only_our_run
from pm_dagster.dispatch.untakeable import Untakeable
from pm_dagster.dispatch.waiting_job import RawRow, RefusedRow, WaitingJob, sort_rows
from pm_dagster.ledger import ledger_sql
from pm_dagster.ledger.closing import Closing, TooSlow, refused_rows, refused_sample
from pm_dagster.ledger.ledger_sql import (
    as_json,
    asked_of,
    change_record,
    claimed_record,
    closed_of,
    entry_of,
    event_record,
    intent_event,
    intent_record,
    refused_record,
    storable,
)
from pm_dagster.ledger.session import Session
from pm_dagster.ledger.waiting_rows import Locks, UntakeableRows, read_current, read_next, read_waiting, reading_view

#: Rows of a slow table are closed in transactions of about this length: short enough to keep what is done.
_SECONDS_AT_ONCE = 5.0
#: A row whose closing the control table refuses is tried again after so many times the pause of a refused repair: what
#: stands in the way is for its owner to change.
_PAUSES_OF_THE_REFUSED = 10


@dataclass(frozen=True)
class _Correction:
    """A row that its owner corrected since the entry was written: how, what it asks for now, and its version."""

    entry: Entry
    words: str
    asks: WaitingJob | None
    version: str | None


class PostgresControlPlane:
    """See ``pm_dagster.dispatch.ports.ControlPlane``. Connects when first used; not thread-safe.

    One that only ``looks`` locks no row to see whether it can, but where row security leaves no other way.
    """

    def __init__(self, settings: Settings, actor: str, *, looks: bool = False) -> None:
        self._session = Session(settings, actor)
        self._settings = settings
        self._looks = looks
        #: How many rows are closed at once; None where the owner's table has never been too slow for all of them.
        self._at_once: int | None = None
        self._slow_table = False

    def backlog(self) -> Backlog:
        """Count what waits; one statement."""

        def work(cursor: Cursor) -> Backlog:
            with reading_view(cursor, self._settings):
                cursor.execute(self._session.statements.backlog, self._names())
            counts = cursor.fetchone() or (0, None, 0, 0, 0, 0, 0)
            free, oldest, backing_off, quarantined, in_hand, orphans, stuck = counts
            locks = Locks(cursor, self._session.statements, self._settings, self._names())
            hidden = locks.hidden(free)
            locked = 0 if self._looks else locks.locked(free - hidden)
            held = 0 if self._looks else locks.answers_locked(orphans)
            age = None if oldest is None or free == hidden + locked else max(0.0, float(oldest))
            return Backlog(
                ready=free - hidden - locked + orphans - held,
                oldest_seconds=age,
                backing_off=backing_off,
                quarantined=quarantined,
                in_hand=in_hand,
                extra={"unresolved": orphans},
                untakeable=stuck + hidden,
                locked=locked + held,
                question=self._session.question,
            )

        return self._session.read(work)

    def waiting(self, limit: int, seen: Collection[int] | None = None) -> list[RawRow]:
        """The rows that a dispatch may take, oldest first; with ``seen`` the next ones."""

        def work(cursor: Cursor) -> list[RawRow]:
            statements, settings = self._session.statements, self._settings
            if seen is None:
                return read_waiting(cursor, statements, settings, self._names(limit=limit))
            names = self._names(limit=limit, seen=list(seen))
            return read_next(cursor, statements, settings, names, locking=not self._looks)

        return self._session.read(work)

    def untakeable(self, limit: int, run_ids: Collection[int] | None = None) -> list[Untakeable]:
        """Rows that no dispatch can take as they are, with the reasons."""

        def work(cursor: Cursor) -> list[Untakeable]:
            rows = UntakeableRows(cursor, self._session.statements, self._settings, self._names())
            with reading_view(cursor, self._settings):
                return rows.found(limit) if run_ids is None else rows.among(list(run_ids))[:limit]

        return self._session.read(work)

    def held(self, run_ids: Collection[int]) -> set[int]:
        """Those of the waiting rows that somebody else holds locked."""
        ids = list(run_ids)
        return self._session.read(
            lambda cursor: Locks(cursor, self._session.statements, self._settings, self._names()).held_among(ids)
        )

    def shown(self, run_ids: Collection[int]) -> list[RawRow]:
        """Those of the rows that still wait, as the view shows them now."""
        ids = list(run_ids)
        return self._session.read(lambda cursor: self._shown(cursor, ids))

    def claim(self, jobs: Sequence[WaitingJob]) -> list[Entry]:
        """Take the jobs that are still WAITING and free, as the view shows them now.

        Those whose closing the control table would refuse come back DEFERRED, with the reason.
        """
        if not jobs:
            return []
        run_ids = [job.run_id for job in jobs]
        if not self._slow_table:
            try:
                return self._session.write(partial(self._claim, run_ids=run_ids), ("claim", run_ids))
            except TooSlow:
                self._slow_table = True
        longest = self._settings.row_seconds
        return self._session.write(partial(self._claim, run_ids=run_ids), ("claim", run_ids), longest=longest)

    def _claim(self, cursor: Cursor, run_ids: list[int]) -> list[Entry]:
        # The row lock orders us after any closing of the same row, whose commit we then see.
        cursor.execute(self._session.statements.lock_waiting, self._names(run_ids=run_ids))
        locked = [run_id for (run_id,) in cursor.fetchall()]
        # What was read may be hours old: a re-execution begins with what an earlier run read.
        versions = self._versions(cursor, locked)
        current, _ = self._current(cursor, locked)
        taken = self._take(cursor, [claimed_record(job, versions) for job in current])
        self._tell(cursor, [(entry_id, Event("claimed")) for entry_id in taken])
        entries = self._entries(cursor, taken)
        refused = self._rehearsed(cursor, entries)
        return [
            replace(entry, state=EntryState.DEFERRED, reason=refused[entry.run_id])
            if entry.run_id in refused
            else entry
            for entry in entries
        ]

    def _rehearsed(self, cursor: Cursor, entries: Sequence[Entry]) -> dict[int, str]:
        """Put off the rows whose closing the control table would refuse: what cannot be closed is not started."""
        if not entries or not self._settings.rehearse:
            return {}
        ask = refused_sample if self._slow_table else refused_rows
        runs = {entry.run_id: entry.previous_run_id for entry in entries}
        refused = ask(cursor, self._session.statements, self._settings, self._names(), runs)
        if not refused:
            return {}
        pause = self._settings.settle_seconds * _PAUSES_OF_THE_REFUSED
        reasons = {e.entry_id: f"not started: {refused[e.run_id]}" for e in entries if e.run_id in refused}
        changes = [
            Change(entry_id, (), EntryState.DEFERRED, Outcome.DEFERRED, reason=why, defer_seconds=pause)
            for entry_id, why in reasons.items()
        ]
        rows = [change_record(change) for change in changes]
        cursor.execute(ledger_sql.RECORD, self._names(changes=as_json(cursor, rows)))
        self._tell(cursor, [(entry_id, Event("deferred", why)) for entry_id, why in reasons.items()])
        return refused

    def refuse(self, rows: Sequence[RefusedRow]) -> list[RefusedRow]:
        """Record rows that are still to be refused as quarantined, and say so in the control table."""
        run_ids = [row.run_id for row in rows if row.run_id is not None]

        def work(cursor: Cursor) -> tuple[list[int], list[RefusedRow]]:
            versions = self._versions(cursor, run_ids)
            _, refused = sort_rows(self._shown(cursor, run_ids))
            records = [refused_record(row, versions) for row in refused]
            taken = self._take(cursor, records)
            reasons = {record["run_id"]: f"{record['reason']} [final: {record['rule']}]" for record in records}
            entries = self._entries(cursor, taken)
            self._tell(cursor, [(e.entry_id, Event("quarantined", reasons[e.run_id])) for e in entries])
            ours = {entry.run_id for entry in entries}
            return taken, [row for row in refused if row.run_id in ours]

        if not run_ids:
            return []
        taken, refused = self._session.write(work, ("refuse", run_ids))
        end = time.monotonic() + _SECONDS_AT_ONCE
        # Of its own, for the table may be slow; what is not closed now is taken over by the next dispatch.
        self.close(taken, lambda: time.monotonic() < end)
        return refused

    def rescue(self, limit: int) -> list[Entry]:
        """Take what a dead dispatcher left in SENDING or ACCEPTED."""

        def work(cursor: Cursor) -> list[Entry]:
            entries, _ = self._inherit(cursor, self._session.statements.take_over, self._names(limit=limit))
            return [replace(entry, rescued=True) for entry in self._with_corrections(cursor, entries)]

        return self._session.write(work, ("take over", limit))

    def resume(self, entry_ids: Collection[int]) -> list[Entry]:
        """The named entries that are ours or can be taken over now."""
        ids = list(entry_ids)

        def work(cursor: Cursor) -> list[Entry]:
            names = self._names(limit=len(ids), entry_ids=ids)
            entries, others = self._inherit(cursor, self._session.statements.resume, names)
            return self._as_now(cursor, self._with_corrections(cursor, entries), others)

        return self._session.write(work, ("resume", ids))

    def intend(self, entries: Sequence[Entry]) -> set[int]:
        """Commit the intents of the entries' calls; returns the ids that may be sent."""
        rows = [intent_record(entry) for entry in entries]

        def work(cursor: Cursor) -> set[int]:
            corrections = self._corrections(cursor, [entry.entry_id for entry in entries])
            unsent = [entry for entry in entries if not is_in_doubt(entry) and entry.entry_id in corrections]
            self._take_corrected(cursor, unsent, corrections)
            names = self._names(intents=as_json(cursor, rows), corrected=list(corrections))
            cursor.execute(self._session.statements.intend, names)
            granted = {entry_id for (entry_id,) in cursor.fetchall()}
            ids = [entry.entry_id for entry in entries if not is_in_doubt(entry)]
            lost = [entry_id for entry_id in ids if entry_id not in granted and entry_id not in corrections]
            self._tell(cursor, [(e.entry_id, intent_event(e)) for e in entries if e.entry_id in granted])
            if lost:
                cursor.execute(self._session.statements.withdraw, self._names(entry_ids=lost))
                self._tell(cursor, [(entry_id, Event("withdrawn")) for (entry_id,) in cursor.fetchall()])
            return granted

        def still(cursor: Cursor, granted: set[int]) -> set[int]:
            # Our lock was gone with the connection: an heir may have resolved them, and let the row go.
            cursor.execute(ledger_sql.STILL_SENDING, self._names(entry_ids=list(granted)))
            return {entry_id for (entry_id,) in cursor.fetchall()}

        return self._session.write(work, ("intend", list(entries)), still)

    def known_runs(self, databricks_run_ids: Collection[int]) -> list[KnownRun]:
        """What the ledger knows of these runs, the newest first."""
        ids = list(databricks_run_ids)

        def work(cursor: Cursor) -> list[KnownRun]:
            cursor.execute(ledger_sql.KNOWN_RUNS, self._names(runs=ids))
            return [KnownRun(*row[:8]) for row in cursor.fetchall()]

        return self._session.read(work) if ids else []

    def record(self, changes: Sequence[Change]) -> set[int]:
        """Write what was learned, with its events; gives the entries whose run, that they found, is another row's."""
        if not changes:
            return set()

        def work(cursor: Cursor) -> set[int]:
            others = self._others_runs(cursor, changes)
            learned = [change.passed_over() if change.entry_id in others else change for change in changes]
            rows = [change_record(change) for change in learned]
            cursor.execute(ledger_sql.RECORD, self._names(changes=as_json(cursor, rows)))
            self._tell(cursor, [(change.entry_id, event) for change in learned for event in change.events])
            return others

        return self._session.write(work, ("record", list(changes)))

    def _others_runs(self, cursor: Cursor, changes: Sequence[Change]) -> set[int]:
        """The entries that found a run which is another row's by now, or is taken by another of these changes."""
        found = {c.entry_id: c.accepted_run_id for c in changes if c.found and c.accepted_run_id is not None}
        if not found:
            return set()
        names = self._names(entry_ids=list(found), runs=list(found.values()))
        cursor.execute(ledger_sql.LOCK_RUNS, names)
        # Of its own, for a statement sees what was committed before it began, and not while it waited.
        cursor.execute(ledger_sql.OTHERS_RUNS, names)
        others = {entry_id for (entry_id,) in cursor.fetchall()}
        return others | taken_at_once([change for change in changes if change.entry_id not in others])

    def close(self, entry_ids: Collection[int], go_on: Callable[[], bool] = lambda: True) -> list[Closed]:
        """Write the control table for entries whose outcome is known, and close them.

        All at once; where the owner's table is too slow for that, in transactions of fewer rows, until ``go_on`` says
        no: what is left then stays open, and says why.
        """
        left, closed = list(entry_ids), []
        while left:
            part, began = left[: self._at_once or len(left)], time.monotonic()
            alone = len(part) == 1
            try:
                closed += self._session.write(
                    partial(self._close, entry_ids=part),
                    ("close", part),
                    longest=self._settings.row_seconds if alone else 0.0,
                )
            except TooSlow:
                self._at_once = 1
                continue
            left = left[len(part) :]
            self._learn(len(part), time.monotonic() - began)
            if left and not go_on():
                self._leave(left)
                break
            if left:
                self._session.heartbeat()
        return closed

    def _learn(self, rows: int, seconds: float) -> None:
        """How many rows to write at once, where all together were too slow: as many as take a few seconds."""
        if self._at_once is not None:
            fit = int(_SECONDS_AT_ONCE / max(seconds / rows, 1e-6))
            self._at_once = max(1, min(4 * rows, fit))

    def _leave(self, entry_ids: list[int]) -> None:
        why = (
            f"{self._settings.control_table} takes so long to write a row (a trigger of its owner?) that this one is"
            " left to the next dispatch"
        )
        names = {"entry_ids": entry_ids, "why": why}
        self._session.write(
            lambda cursor: cursor.execute(ledger_sql.LEFT_FOR_LATER, self._names(**names)), ("leave", entry_ids)
        )

    def register(self) -> None:
        """Become a dispatcher now."""
        self._session.register()

    def signs_of_life(self, actors: Collection[str]) -> dict[str, SignOfLife]:
        """What the ledger knows of the dispatchers with these names."""

        def work(cursor: Cursor) -> dict[str, SignOfLife]:
            cursor.execute(ledger_sql.SIGNS_OF_LIFE, {"actors": list(actors)})
            return {
                actor: SignOfLife(alive, left, max(0.0, float(ago))) for actor, alive, left, ago in cursor.fetchall()
            }

        return self._session.read(work) if actors else {}

    def heartbeat(self) -> None:
        """Say that this dispatcher lives."""
        self._session.heartbeat()

    def end(self) -> None:
        """Give up the claims and leave."""
        self._session.end()

    def _names(self, **more: object) -> dict[str, Any]:
        return {**self._session.names, **more}

    def _shown(self, cursor: Cursor, run_ids: list[int]) -> list[RawRow]:
        cursor.execute(self._session.statements.waiting_still, self._names(run_ids=run_ids))
        waiting = list({run_id for (run_id,) in cursor.fetchall()})
        return read_current(cursor, self._session.statements, self._settings, self._names(run_ids=waiting))

    def _current(self, cursor: Cursor, run_ids: list[int]) -> tuple[list[WaitingJob], list[RefusedRow]]:
        """The rows as the view shows them now: those to dispatch, and those to refuse."""
        return sort_rows(read_current(cursor, self._session.statements, self._settings, self._names(run_ids=run_ids)))

    def _versions(self, cursor: Cursor, run_ids: list[int]) -> dict[int, str]:
        """The versions of the table's rows that wait; to be read before their values, so that none is missed."""
        cursor.execute(self._session.statements.versions, self._names(run_ids=run_ids))
        return {run_id: version for run_id, version in cursor.fetchall() if version is not None}

    def _corrections(self, cursor: Cursor, entry_ids: list[int]) -> dict[int, _Correction]:
        """Of our entries whose row still waits: those whose row says something else than was claimed."""
        cursor.execute(self._session.statements.suspects, self._names(entry_ids=entry_ids))
        suspects = {entry_id: (written, version) for entry_id, written, version in cursor.fetchall()}
        if not suspects:
            return {}
        entries = self._entries(cursor, list(suspects))
        current, refused = self._current(cursor, [entry.run_id for entry in entries])
        jobs = {job.run_id: job for job in current}
        broken = {row.run_id: row for row in refused}
        found: dict[int, _Correction] = {}
        same: list[dict[str, Any]] = []
        for entry in entries:
            written, version = suspects[entry.entry_id]
            words, asks = correction(entry, jobs.get(entry.run_id), broken.get(entry.run_id), written=written)
            if words:
                found[entry.entry_id] = _Correction(entry, words, asks, version)
            elif written and asks is not None:
                same.append({"entry_id": entry.entry_id, "row_version": version})
        if same:
            cursor.execute(ledger_sql.SAME_AGAIN, self._names(rows=as_json(cursor, same)))
        return found

    def _with_corrections(self, cursor: Cursor, entries: list[Entry]) -> list[Entry]:
        """The entries, those in doubt with how their row was corrected since."""
        doubtful = [e.entry_id for e in entries if is_in_doubt(e) and e.waiting]
        found = self._corrections(cursor, doubtful) if doubtful else {}
        return [
            replace(entry, correction=found[entry.entry_id].words, asks=found[entry.entry_id].asks)
            if entry.entry_id in found
            else entry
            for entry in entries
        ]

    def _take_corrected(self, cursor: Cursor, entries: list[Entry], found: Mapping[int, _Correction]) -> None:
        """Write what the rows ask for now into entries of which nothing was sent; close those that ask for nothing."""
        if not entries:
            return
        cursor.execute(ledger_sql.NOT_SENT, self._names(entry_ids=[entry.entry_id for entry in entries]))
        each = [found[entry.entry_id] for entry in entries]
        records = [claimed_record(c.asks, {c.entry.run_id: c.version or ""}) for c in each if c.asks is not None]
        for record in records:
            record["row_version"] = record["row_version"] or None
        self._take(cursor, records)
        self._tell(cursor, [(c.entry.entry_id, Event("corrected", c.words)) for c in each if c.asks is not None])
        self._supersede(cursor, {c.entry.entry_id: c.words for c in each if c.asks is None})

    def _supersede(self, cursor: Cursor, why: Mapping[int, str]) -> None:
        if why:
            details = {entry_id: storable(f"the row was corrected ({words})") for entry_id, words in why.items()}
            rows = [{"entry_id": entry_id, "detail": detail} for entry_id, detail in details.items()]
            cursor.execute(ledger_sql.SUPERSEDE, self._names(rows=as_json(cursor, rows)))
            self._tell(cursor, [(entry_id, Event("superseded", detail)) for entry_id, detail in details.items()])

    def _corrected_before_closing(self, cursor: Cursor, runs: Mapping[int, int | None]) -> set[int]:
        """Close entries whose row was corrected since, without writing it; ``runs`` are those that they accepted.

        Gives their ids. A row that only names our own run has it from whoever saw it.
        """
        found = self._corrections(cursor, list(runs)) if runs else {}
        why = {
            entry_id: c.words
            for entry_id, c in found.items()
            if runs[entry_id] is None or not names_only_our_run(c.entry, c.asks, runs[entry_id] or 0)
        }
        self._supersede(cursor, why)
        return set(why)

    def _take(self, cursor: Cursor, records: list[dict[str, Any]]) -> list[int]:
        """Write records as this dispatcher's entries; those that another entry stands against are left out."""
        run_ids = [record["run_id"] for record in records]
        cursor.execute(ledger_sql.GENERATIONS, self._names(run_ids=run_ids))
        known = {row[0]: row[1:] for row in cursor.fetchall()}
        ready = []
        for record in records:
            generation, is_open, entry_id, free = known.get(record["run_id"], (0, False, None, False))
            if is_open and not free:
                continue
            number = generation if is_open else generation + 1
            token = self._token(record, number)
            ready.append({**record, "generation": number, "entry_id": entry_id if is_open else None, **token})
        jobs = self._names(jobs=as_json(cursor, ready))
        taken: list[int] = []
        for statement in (ledger_sql.INSERT_ENTRIES, ledger_sql.REFRESH_ENTRIES):
            cursor.execute(statement, jobs)
            taken += [entry_id for (entry_id,) in cursor.fetchall()]
        return taken

    def _token(self, record: dict[str, Any], generation: int) -> dict[str, str]:
        if record["job_id"] is None:
            return {}
        names = (self._session.environment, self._settings.control_table)
        return {"idempotency_token": idempotency_token(*names, record["run_id"], generation, asked_of(record))}

    def _inherit(
        self,
        cursor: Cursor,
        statement: Any,  # noqa: ANN401 composed
        names: dict[str, Any],
    ) -> tuple[list[Entry], set[int]]:
        """Run a statement that takes over; gives the entries, and the ids of those that were another dispatcher's."""
        cursor.execute(statement, names)
        rows = cursor.fetchall()
        others = {entry_id: before for entry_id, before in rows if before != names["me"]}
        self._tell(cursor, [(e, Event("taken over", f"from dispatcher {before}")) for e, before in others.items()])
        return self._entries(cursor, [entry_id for entry_id, _ in rows]), set(others)

    def _as_now(self, cursor: Cursor, entries: list[Entry], others: set[int]) -> list[Entry]:
        """The entries, those that others claimed as their rows are now: a re-execution may come hours after the claim.

        A row that still waits and can no more be read is left out, for the next dispatch to refuse.
        """
        stale = {
            entry.run_id: entry
            for entry in entries
            if entry.entry_id in others and entry.state is EntryState.CLAIMED and entry.waiting
        }
        if not stale:
            return entries
        versions = self._versions(cursor, list(stale))
        current, _ = self._current(cursor, list(stale))
        taken = set(self._take(cursor, [claimed_record(job, versions) for job in current]))
        lost = {entry.entry_id for entry in stale.values()} - taken
        return self._entries(cursor, [entry.entry_id for entry in entries if entry.entry_id not in lost])

    def _entries(self, cursor: Cursor, entry_ids: list[int]) -> list[Entry]:
        cursor.execute(self._session.statements.entries, self._names(entry_ids=entry_ids))
        return [entry_of(row) for row in cursor.fetchall()]

    def _tell(self, cursor: Cursor, events: Iterable[tuple[int, Event]]) -> None:
        rows = [{**event_record(entry_id, event), "place": place} for place, (entry_id, event) in enumerate(events)]
        if rows:
            cursor.execute(ledger_sql.INSERT_EVENTS, self._names(events=as_json(cursor, rows)))

    def _close(self, cursor: Cursor, entry_ids: list[int]) -> list[Closed]:
        corrected = partial(self._corrected_before_closing, cursor)
        closing = Closing(cursor, self._session.statements, self._settings, self._names(), corrected)
        self._tell(cursor, closing.close(entry_ids))
        cursor.execute(self._session.statements.closed, self._names(entry_ids=entry_ids))
        return [closed_of(row) for row in cursor.fetchall()]
