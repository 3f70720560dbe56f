"""The control table and the ledger as one dispatcher sees them: the ControlPlane port over Postgres.

Each method of the port is one transaction of a ``Session``, made of the statements of ``control_table_sql`` and
``ledger_sql``. A method that writes may be repeated by the session, and is still done once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from psycopg2 import sql
from psycopg2.extensions import cursor as Cursor  # noqa: N812

from pm_dagster.config.masking import scrubbed
from pm_dagster.config.settings import Settings
from pm_dagster.dispatch.in_doubt import is_in_doubt
from pm_dagster.dispatch.model import Entry, EntryState, KnownRun, Outcome, idempotency_token
from pm_dagster.dispatch.ports import Backlog, BudgetChange, Change, Closed, Event, SignOfLife, Written, taken_at_once
from pm_dagster.dispatch.rules import correction, names_only_our_run
from pm_dagster.dispatch.untakeable import Untakeable
from pm_dagster.dispatch.waiting_job import RawRow, RefusedRow, WaitingJob, sort_rows
from pm_dagster.ledger import ledger_sql
from pm_dagster.ledger.closing import Closing, TooSlow
from pm_dagster.ledger.connection import named_rows
from pm_dagster.ledger.ledger_sql import (
    as_json,
    asked_of,
    change_record,
    claimed_record,
    closed_of,
    entry_of,
    event_record,
    intent_record,
    known_run_of,
    refused_record,
    storable,
)
from pm_dagster.ledger.session import Session
from pm_dagster.ledger.waiting_rows import Locks, UntakeableRows, read_current, read_next, read_waiting, reading_view
from pm_dagster.logs import fields

_log = logging.getLogger(__name__)

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
            counts: Any = cursor.fetchone()
            locks = Locks(cursor, self._session.statements, self._settings, self._names())
            hidden = locks.hidden(counts.free)
            locked = 0 if self._looks else locks.locked(counts.free - hidden)
            held = 0 if self._looks else locks.answers_locked(counts.left_behind)
            none_left = counts.oldest is None or counts.free == hidden + locked
            return Backlog(
                ready=counts.free - hidden - locked + counts.left_behind - held,
                oldest_seconds=None if none_left else max(0.0, float(counts.oldest)),
                backing_off=counts.backing_off,
                quarantined=counts.quarantined,
                in_hand=counts.in_hand,
                extra={"unresolved": counts.left_behind},
                untakeable=counts.untakeable + hidden,
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
            return read_next(cursor, statements, settings, names)

        return self._session.read(work)

    def has_work(self, *, ours: bool = False) -> bool:
        """Whether a dispatch would find anything to do."""

        def work(cursor: Cursor) -> bool:
            with reading_view(cursor, self._settings):
                cursor.execute(self._session.statements.has_work, self._names(ours=ours))
            (found,) = cursor.fetchone() or (False,)
            return bool(found)

        return self._session.read(work)

    def untakeable(self, limit: int, run_ids: Collection[int] | None = None) -> list[Untakeable]:
        """Rows that no dispatch can take as they are, with the reasons."""

        def work(cursor: Cursor) -> list[Untakeable]:
            rows = UntakeableRows(cursor, self._session.statements, self._settings, self._names())
            with reading_view(cursor, self._settings):
                return rows.found(limit) if run_ids is None else rows.among(list(run_ids))[:limit]

        found = self._session.read(work)
        for row in found:
            if not row.settled:
                _log.info("row cannot be taken", extra=fields(run_id=row.run_id, reason=scrubbed(row.reason)))
        return found

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
                _log.warning("table too slow, one row rehearsed for all", extra=fields(rows=len(run_ids)))
                self._slow_table = True
        longest = self._settings.row_seconds
        return self._session.write(partial(self._claim, run_ids=run_ids), ("claim", run_ids), longest=longest)

    def _claim(self, cursor: Cursor, run_ids: list[int]) -> list[Entry]:
        # The row lock orders us after any closing of the same row, whose commit we then see.
        cursor.execute(self._session.statements.lock_waiting, self._names(run_ids=run_ids))
        locked = [row.run_id for row in named_rows(cursor)]
        # What was read may be hours old: a re-execution begins with what an earlier run read.
        versions = self._versions(cursor, locked)
        current, _ = self._current(cursor, locked)
        taken = self._take(cursor, [claimed_record(job, versions) for job in current])
        self._add_events(cursor, [(entry_id, Event("claimed")) for entry_id in taken])
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
        if not entries:
            return {}
        if not self._settings.rehearse:
            _log.info("rehearsal skipped", extra=fields(rows=len(entries)))
            return {}
        closing = Closing(cursor, self._session.statements, self._settings, self._names())
        runs = {entry.run_id: entry.previous_run_id for entry in entries}
        refused = closing.refused_by_sample(runs) if self._slow_table else closing.refused(runs)
        if not refused:
            return {}
        pause = self._settings.settle_seconds * _PAUSES_OF_THE_REFUSED
        reasons = {e.entry_id: f"not started: {refused[e.run_id]}" for e in entries if e.run_id in refused}
        for entry in entries:
            if entry.run_id in refused:
                why = scrubbed(refused[entry.run_id])
                _log.warning("row not started", extra=fields(run_id=entry.run_id, entry=entry.entry_id, reason=why))
        changes = [
            Change(entry_id, (), EntryState.DEFERRED, Outcome.DEFERRED, reason=why, defer_seconds=pause)
            for entry_id, why in reasons.items()
        ]
        cursor.execute(ledger_sql.RECORD, self._names(**_changed(cursor, changes)))
        self._add_events(cursor, [(entry_id, Event("deferred", why)) for entry_id, why in reasons.items()])
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
            self._add_events(cursor, [(e.entry_id, Event("quarantined", reasons[e.run_id])) for e in entries])
            ours = {entry.run_id for entry in entries}
            return taken, [row for row in refused if row.run_id in ours]

        if not run_ids:
            return []
        taken, refused = self._session.write(work, ("refuse", run_ids))
        end = time.monotonic() + _SECONDS_AT_ONCE
        # Of its own, for the table may be slow; what is not closed now is rescued by the next dispatch.
        self.close(taken, lambda: time.monotonic() < end)
        return refused

    def rescue(self, limit: int) -> list[Entry]:
        """Take what a dead dispatcher left in SENDING or ACCEPTED."""

        def work(cursor: Cursor) -> list[Entry]:
            entries, _ = self._rescue(cursor, self._session.statements.rescue, self._names(limit=limit))
            return [replace(entry, rescued=True) for entry in self._with_corrections(cursor, entries)]

        return self._session.write(work, ("rescue", limit))

    def resume(self, entry_ids: Collection[int]) -> list[Entry]:
        """The named entries that are ours or can be rescued now."""
        ids = list(entry_ids)

        def work(cursor: Cursor) -> list[Entry]:
            names = self._names(limit=len(ids), entry_ids=ids)
            entries, others = self._rescue(cursor, self._session.statements.resume, names)
            return self._as_now(cursor, self._with_corrections(cursor, entries), others)

        return self._session.write(work, ("resume", ids))

    def intend(self, entries: Sequence[Entry]) -> set[int]:
        """Commit the intents of the entries' calls; returns the ids that may be sent."""
        return self.record_and_intend([], entries).granted

    def known_runs(self, databricks_run_ids: Collection[int]) -> list[KnownRun]:
        """What the ledger knows of these runs, the newest first."""
        ids = list(databricks_run_ids)

        def work(cursor: Cursor) -> list[KnownRun]:
            cursor.execute(ledger_sql.KNOWN_RUNS, self._names(runs=ids))
            return [known_run_of(row) for row in named_rows(cursor)]

        return self._session.read(work) if ids else []

    def record(self, changes: Sequence[Change]) -> set[int]:
        """Write what was learned, with its events; gives the entries whose run, that they found, is another row's."""
        return self.record_and_intend(changes, []).passed_over

    def record_and_intend(self, changes: Sequence[Change], entries: Sequence[Entry]) -> Written:
        """Write what was learned, and commit the intents of the entries' calls."""

        def work(cursor: Cursor) -> Written:
            others = self._others_runs(cursor, changes)
            learned = [change.passed_over() if change.entry_id in others else change for change in changes]
            return Written(others, self._record_and_intend(cursor, learned, entries))

        def still(cursor: Cursor, written: Written) -> Written:
            # Our lock was lost with the connection: another dispatcher may have rescued, resolved and closed them.
            cursor.execute(ledger_sql.STILL_SENDING, self._names(entry_ids=list(written.granted)))
            return written._replace(granted={row.entry_id for row in named_rows(cursor)})

        if not changes and not entries:
            return Written(set(), set())
        return self._session.write(work, ("record and intend", list(changes), list(entries)), still)

    def _record_and_intend(self, cursor: Cursor, changes: list[Change], entries: Sequence[Entry]) -> set[int]:
        """What is usual goes in one message: the answers, and the intents of rows that nobody wrote since the claim."""
        events = [(change.entry_id, event) for change in changes for event in change.events]
        # Each write of an entry goes to most of its indexes.
        changes = [change for change in changes if not change.only_tells]
        statements = self._session.statements
        texts = [ledger_sql.RECORD] * bool(changes) + [ledger_sql.INSERT_EVENTS] * bool(events)
        message = [sql.SQL(text) for text in texts] + [statements.intend_untouched] * bool(entries)
        names = self._names(
            events=as_json(cursor, _event_rows(events)), **_changed(cursor, changes), **_intended(cursor, entries)
        )
        if message:
            cursor.execute(sql.SQL(";").join(message), names)
        granted = {row.entry_id for row in named_rows(cursor)} if entries else set()
        others = [entry for entry in entries if entry.entry_id not in granted]
        return granted | self._intend_touched(cursor, others) if others else granted

    def _intend_touched(self, cursor: Cursor, entries: Sequence[Entry]) -> set[int]:
        """Commit intents of rows that were written since the claim, left WAITING, or have no versions to tell by."""
        corrections = self._corrections(cursor, [entry.entry_id for entry in entries])
        unsent = [entry for entry in entries if not is_in_doubt(entry) and entry.entry_id in corrections]
        self._take_corrected(cursor, unsent, corrections)
        names = self._names(corrected=list(corrections), **_intended(cursor, entries))
        cursor.execute(self._session.statements.intend, names)
        granted = {row.entry_id for row in named_rows(cursor)}
        ids = [entry.entry_id for entry in entries if not is_in_doubt(entry)]
        lost = [entry_id for entry_id in ids if entry_id not in granted and entry_id not in corrections]
        if lost:
            cursor.execute(self._session.statements.withdraw, self._names(entry_ids=lost))
            self._add_events(cursor, [(row.entry_id, Event("withdrawn")) for row in named_rows(cursor)])
        return granted

    def _others_runs(self, cursor: Cursor, changes: Sequence[Change]) -> set[int]:
        """The entries that found a run which is another row's by now, or is taken by another of these changes."""
        found = {c.entry_id: c.accepted_run_id for c in changes if c.found and c.accepted_run_id is not None}
        if not found:
            return set()
        names = self._names(entry_ids=list(found), runs=list(found.values()))
        cursor.execute(ledger_sql.LOCK_RUNS, names)
        # Of its own, for a statement sees what was committed before it began, and not while it waited.
        cursor.execute(ledger_sql.OTHERS_RUNS, names)
        others = {row.entry_id for row in named_rows(cursor)}
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
                _log.warning("table too slow, rows closed one by one", extra=fields(rows=len(part)))
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
        _log.warning("rows left to the next dispatch", extra=fields(rows=len(entry_ids)))
        names = {"entry_ids": entry_ids, "why": why}
        self._session.write(
            lambda cursor: cursor.execute(ledger_sql.LEFT_FOR_LATER, self._names(**names)), ("leave", entry_ids)
        )

    def share_budget(self, workspace: str, change: BudgetChange) -> bool:
        """Change the record of a workspace's budget while its row is locked."""

        def work(cursor: Cursor) -> None:
            names = {"workspace": workspace}
            cursor.execute(ledger_sql.LOCK_BUDGET, names)
            row: Any = cursor.fetchone()
            if row is None:
                cursor.execute(ledger_sql.FIRST_BUDGET, names)
                row = cursor.fetchone()
            record = change(row.record, float(row.seconds))
            cursor.execute(ledger_sql.WRITE_BUDGET, {**names, "record": as_json(cursor, record)})

        self._session.once(work)
        return True

    def register(self) -> None:
        """Become a dispatcher now."""
        self._session.register()

    def signs_of_life(self, actors: Collection[str]) -> dict[str, SignOfLife]:
        """What the ledger knows of the dispatchers with these names."""

        def work(cursor: Cursor) -> dict[str, SignOfLife]:
            cursor.execute(ledger_sql.SIGNS_OF_LIFE, {"actors": list(actors)})
            return {
                row.actor: SignOfLife(row.alive, row.left_properly, max(0.0, float(row.seconds_ago)))
                for row in named_rows(cursor)
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
        waiting = list({row.run_id for row in named_rows(cursor)})
        return read_current(cursor, self._session.statements, self._settings, self._names(run_ids=waiting))

    def _current(self, cursor: Cursor, run_ids: list[int]) -> tuple[list[WaitingJob], list[RefusedRow]]:
        """The rows as the view shows them now: those to dispatch, and those to refuse."""
        return sort_rows(read_current(cursor, self._session.statements, self._settings, self._names(run_ids=run_ids)))

    def _versions(self, cursor: Cursor, run_ids: list[int]) -> dict[int, str]:
        """The versions of the table's rows that wait; to be read before their values, so that none is missed."""
        cursor.execute(self._session.statements.versions, self._names(run_ids=run_ids))
        return {row.run_id: row.version for row in named_rows(cursor) if row.version is not None}

    def _corrections(self, cursor: Cursor, entry_ids: list[int]) -> dict[int, _Correction]:
        """Of our entries whose row still waits: those whose row says something else than was claimed."""
        cursor.execute(self._session.statements.suspects, self._names(entry_ids=entry_ids))
        suspects = {row.entry_id: row for row in named_rows(cursor)}
        if not suspects:
            return {}
        entries = self._entries(cursor, list(suspects))
        current, refused = self._current(cursor, [entry.run_id for entry in entries])
        jobs = {job.run_id: job for job in current}
        broken = {row.run_id: row for row in refused}
        found: dict[int, _Correction] = {}
        same: list[dict[str, Any]] = []
        for entry in entries:
            suspect = suspects[entry.entry_id]
            words, asks = correction(entry, jobs.get(entry.run_id), broken.get(entry.run_id), written=suspect.written)
            if words:
                found[entry.entry_id] = _Correction(entry, words, asks, suspect.version)
            elif suspect.written and asks is not None:
                same.append({"entry_id": entry.entry_id, "row_version": suspect.version})
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
        self._add_events(cursor, [(c.entry.entry_id, Event("corrected", c.words)) for c in each if c.asks is not None])
        self._supersede(cursor, {c.entry.entry_id: c.words for c in each if c.asks is None})

    def _supersede(self, cursor: Cursor, why: Mapping[int, str]) -> None:
        if why:
            details = {entry_id: storable(f"the row was corrected ({words})") for entry_id, words in why.items()}
            rows = [{"entry_id": entry_id, "detail": detail} for entry_id, detail in details.items()]
            cursor.execute(ledger_sql.SUPERSEDE, self._names(rows=as_json(cursor, rows)))
            self._add_events(cursor, [(entry_id, Event("superseded", detail)) for entry_id, detail in details.items()])

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
        newest = {row.run_id: row for row in named_rows(cursor)}
        ready = []
        for record in records:
            entry = newest.get(record["run_id"])
            if entry is None or not entry.open:
                entry_id, generation = None, entry.generation + 1 if entry else 1
            elif entry.claimable:
                entry_id, generation = entry.entry_id, entry.generation
            else:
                continue
            token = self._token(record, generation)
            ready.append({**record, "entry_id": entry_id, "generation": generation, **token})
        jobs = self._names(jobs=as_json(cursor, ready))
        taken: list[int] = []
        for statement in (ledger_sql.INSERT_ENTRIES, ledger_sql.REFRESH_ENTRIES):
            cursor.execute(statement, jobs)
            taken += [row.entry_id for row in named_rows(cursor)]
        return taken

    def _token(self, record: dict[str, Any], generation: int) -> dict[str, str]:
        if record["job_id"] is None:
            return {}
        names = (self._session.environment, self._settings.control_table)
        return {"idempotency_token": idempotency_token(*names, record["run_id"], generation, asked_of(record))}

    def _rescue(
        self,
        cursor: Cursor,
        statement: Any,  # noqa: ANN401 composed
        names: dict[str, Any],
    ) -> tuple[list[Entry], set[int]]:
        """Run a statement that rescues; gives the entries, and the ids of those that were another dispatcher's."""
        cursor.execute(statement, names)
        rows = named_rows(cursor)
        others = {row.entry_id: row.owner for row in rows if row.owner != names["me"]}
        self._add_events(cursor, [(e, Event("taken over", f"from dispatcher {owner}")) for e, owner in others.items()])
        return self._entries(cursor, [row.entry_id for row in rows]), set(others)

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
        return [entry_of(row) for row in named_rows(cursor)]

    def _add_events(self, cursor: Cursor, events: Iterable[tuple[int, Event]]) -> None:
        rows = _event_rows(events)
        if rows:
            cursor.execute(ledger_sql.INSERT_EVENTS, self._names(events=as_json(cursor, rows)))

    def _close(self, cursor: Cursor, entry_ids: list[int]) -> list[Closed]:
        corrected = partial(self._corrected_before_closing, cursor)
        closing = Closing(cursor, self._session.statements, self._settings, self._names(), corrected)
        self._add_events(cursor, closing.close(entry_ids))
        cursor.execute(self._session.statements.closed, self._names(entry_ids=entry_ids))
        return [closed_of(row) for row in named_rows(cursor)]


def _event_rows(events: Iterable[tuple[int, Event]]) -> list[dict[str, Any]]:
    return [{**event_record(entry_id, event), "place": place} for place, (entry_id, event) in enumerate(events)]


def _changed(cursor: Cursor, changes: Sequence[Change]) -> dict[str, object]:
    """The parameters of ``RECORD``."""
    rows = [change_record(change) for change in changes]
    return {"changes": as_json(cursor, rows), "changed": [change.entry_id for change in changes]}


def _intended(cursor: Cursor, entries: Sequence[Entry]) -> dict[str, object]:
    """The parameters of ``intend``."""
    rows = [{**intent_record(entry), "place": place} for place, entry in enumerate(entries)]
    return {"intents": as_json(cursor, rows), "intended": [entry.entry_id for entry in entries]}
