"""The end of an entry: the control table says what became of the row, and the ledger closes it, in one transaction.

Put here: which rows are written, what becomes of those that the owner's table does not take. Keep out: statements.

A table can refuse a row (a trigger, a constraint, an enumeration without the word), drop the write or undo it. That is
the row's own trouble: its entry stays open, so that it is never run a second time, and says why; the others are closed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg2
from psycopg2 import errorcodes
from psycopg2.extensions import cursor as Cursor  # noqa: N812 the driver's class has a lower-case name

from pm_dagster.config.settings import Settings
from pm_dagster.dispatch.model import EntryState
from pm_dagster.dispatch.ports import Event
from pm_dagster.errors import ConfigurationError
from pm_dagster.ledger import statements
from pm_dagster.ledger.connection import in_our_words
from pm_dagster.ledger.control_statements import Statements
from pm_dagster.ledger.text import as_json, storable

#: A lock that the owner's triggers wait for is looked for with short waits, and not for ever: so many find one row
#: among a thousand, and more of them take 10 s. What is left then is put off untried.
_SHORT_WAIT = "SET LOCAL lock_timeout = '500ms'"
_MOST_LOCK_WAITS = 20
#: So long may a write of several rows take before they are written one by one. A thousand take some 50 ms without the
#: owner's triggers.
_LONGEST_TOGETHER_SECONDS = 10.0
_LIMIT = "SELECT set_config('statement_timeout', %(limit)s, true)"
#: A row that takes too long is tried again after so many times what it may take.
_SLOW_ROW_PAUSES = 10.0


class TooSlow(Exception):
    """Several rows together took longer than they may. Nothing of the transaction may be kept."""


@dataclass(frozen=True)
class Seen:
    """What the control table says of a row, whether the table itself takes that for waiting, and the run it names."""

    status: str
    waits: bool
    run: str | None


class Closing:
    """Closes entries of one dispatcher within a transaction. ``names`` are the parameters that statements share.

    ``corrected`` closes those whose row was corrected since, without writing it: entry ids with their runs go in.
    """

    def __init__(
        self,
        cursor: Cursor,
        owners: Statements,
        settings: Settings,
        names: Mapping[str, Any],
        corrected: Callable[[Mapping[int, int | None]], set[int]] = lambda _runs: set(),
    ) -> None:
        self._cursor = cursor
        self._owners = owners
        self._settings = settings
        self._names = names
        self._corrected = corrected
        self._lock_waits = 0
        self._alone = False
        self._limit = _LONGEST_TOGETHER_SECONDS
        self._slow: set[int] = set()
        self._bare: dict[int, str] = {}

    def close(self, entry_ids: Sequence[int]) -> list[tuple[int, Event]]:
        """Write the rows and close what may be closed; gives the events to tell.

        Raises TooSlow when several take too long together; one by itself has all the time that a row may take.
        """
        self._alone = len(entry_ids) == 1
        if self._alone:
            self._limit = self._settings.row_seconds
        due = self._run(statements.TO_CLOSE, entry_ids=list(entry_ids))
        run_ids = [row[1] for row in due]
        found: dict[int, Seen] = {}
        for run_id, status, waits, run in self._run(self._owners.lock_rows, run_ids=run_ids):
            # Without a key a table can hold several rows of one id: the one that waits is meant.
            if run_id not in found or waits:
                found[run_id] = Seen(status, waits, run)
        # Under the row locks: what the rows say now is what is written over, or left to the next generation.
        corrected = self._corrected({row[0]: row[4] for row in due if row[1] in found and found[row[1]].waits})
        due = [row for row in due if row[0] not in corrected]
        existing = {run_id for (run_id,) in self._run(self._owners.existing, run_ids=run_ids)}
        failed = self._write([self._row_write(row) for row in due if _to_write(row, found.get(row[1]))])
        closable = [row for row in due if row[1] not in failed and _closable(row, found, existing)]
        self._cursor.execute(statements.LOCAL_TIMEOUTS)
        self._run(statements.CLOSE_ENTRIES, entry_ids=[row[0] for row in closable])
        self._put_off({row[0]: failed[row[1]] for row in due if row[1] in failed})
        return [(row[0], self._closing_event(row, found)) for row in closable]

    def rehearse(self, rows: Sequence[Mapping[str, Any]], limit: float, *, alone: bool = False) -> dict[int, str]:
        """Write the rows and undo it; gives, by run id, why one would not be closed.

        Raises TooSlow when they take longer than ``limit`` seconds together, unless it is one row ``alone``.
        """
        self._alone, self._limit = alone, limit
        self._cursor.execute("SAVEPOINT rehearsal")
        failed = self._write(rows)
        self._cursor.execute("ROLLBACK TO SAVEPOINT rehearsal")
        return failed

    def _run(self, statement: Any, **names: object) -> list[tuple[Any, ...]]:  # noqa: ANN401 text or composed
        self._cursor.execute(statement, {**self._names, **names})
        return self._cursor.fetchall() if self._cursor.description is not None else []

    def _write(self, rows: Sequence[Mapping[str, Any]]) -> dict[int, str]:
        """Write the rows; gives, by run id, why one was not: all at once, and in halves where the table refuses."""
        if not rows:
            return {}
        began = time.monotonic()
        try:
            return self._try(rows, self._owners.write_rows)
        except psycopg2.Error as error:
            what = in_our_words(error)
            slow = error.pgcode == errorcodes.QUERY_CANCELED and time.monotonic() - began > 0.9 * self._limit
            if not slow and not _is_of_the_rows(error, what):
                raise
            self._cursor.execute("ROLLBACK TO SAVEPOINT closing")
            if slow:
                return self._too_slow(rows)
            if error.pgcode == errorcodes.LOCK_NOT_AVAILABLE:
                self._lock_waits += 1
                self._cursor.execute(_SHORT_WAIT)
        if len(rows) == 1 or self._lock_waits > _MOST_LOCK_WAITS:
            why = f"{self._settings.control_table} does not take the row: {what}"
            return self._write_bare(rows, why) if len(rows) == 1 else {row["run_id"]: why for row in rows}
        half = len(rows) // 2
        return self._write(rows[:half]) | self._write(rows[half:])

    def _too_slow(self, rows: Sequence[Mapping[str, Any]]) -> dict[int, str]:
        if not self._alone:
            raise TooSlow
        why = (
            f"{self._settings.control_table} takes longer than {self._limit:g} s to write this row: a trigger of its"
            " owner, or a lock that it waits for? PM_ROW_SECONDS allows more"
        )
        self._slow |= {row["run_id"] for row in rows}
        return {row["run_id"]: why for row in rows}

    def _write_bare(self, rows: Sequence[Mapping[str, Any]], why: str) -> dict[int, str]:
        """Write status and run alone: link and message are worth less than that the row can be closed."""
        try:
            failed = self._try(rows, self._owners.write_bare)
        except psycopg2.Error as error:
            if not _is_of_the_rows(error, in_our_words(error)):
                raise
            self._cursor.execute("ROLLBACK TO SAVEPOINT closing")
            return {row["run_id"]: why for row in rows}
        self._bare |= {row["run_id"]: why for row in rows}
        return failed

    def _try(self, rows: Sequence[Mapping[str, Any]], statement: Any) -> dict[int, str]:  # noqa: ANN401 composed
        self._cursor.execute("SAVEPOINT closing")
        self._run(_LIMIT, limit=f"{self._limit * 1000:.0f}")
        self._run(statement, rows=as_json(self._cursor, rows))
        # A check that the owner put off to the end of the transaction would take all rows with it.
        self._cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
        waiting = self._run(self._owners.waiting_still, run_ids=[row["run_id"] for row in rows])
        self._cursor.execute("RELEASE SAVEPOINT closing")
        table, status = self._settings.control_table, self._settings.status_waiting
        why = f"{table} still says {status} after the write: a trigger or rule of its owner keeps it so"
        return {run_id: why for (run_id,) in waiting}

    def _put_off(self, failed: Mapping[int, str]) -> None:
        rows = [{"entry_id": entry_id, "detail": storable(why)} for entry_id, why in failed.items()]
        if rows:
            pause = self._settings.settle_seconds + (self._limit * _SLOW_ROW_PAUSES if self._slow else 0.0)
            self._run(statements.NOT_CLOSED, rows=as_json(self._cursor, rows), seconds=pause)

    def _status_for(self, state: str, succeeded: bool) -> str:  # noqa: FBT001 as the ledger has it
        if state == EntryState.QUARANTINED.value:
            return self._settings.status_failed
        return self._settings.status_succeeded if succeeded else self._settings.status_scheduled

    def _row_write(self, row: tuple[Any, ...]) -> dict[str, Any]:
        _, run_id, state, succeeded, databricks_run_id, url, reason, _ = row
        status = self._status_for(state, succeeded)
        return {"run_id": run_id, "status": status, "run": databricks_run_id, "url": url, "message": reason}

    def _closing_event(self, row: tuple[Any, ...], found: Mapping[int, Seen]) -> Event:
        seen = found.get(row[1])
        if seen is not None and seen.waits and not _to_write(row, seen):
            return Event("closed", f"control table says {seen.status} beside run {seen.run}: asked for again; left so")
        if seen is not None and seen.waits:
            without = f", without link and message: {self._bare[row[1]]}" if row[1] in self._bare else ""
            written = f"control table set from {seen.status} to {self._status_for(row[2], row[3])}{without}"
            return Event("closed", storable(written))
        return Event("closed", f"control table already says {seen and seen.status}; left as it is")


def _is_of_the_rows(error: psycopg2.Error, what: Exception) -> bool:
    """Whether what went wrong may be about some of the rows; a lock is one that a trigger waits for."""
    if error.pgcode == errorcodes.LOCK_NOT_AVAILABLE:
        return True
    return isinstance(what, ConfigurationError)


def _to_write(row: tuple[Any, ...], seen: Seen | None) -> bool:
    """A row that waits is written, unless it names our run, of which only somebody who saw it can know.

    That one asks for what comes after it, such as its repair: the row is left to the next dispatch.
    """
    if seen is None or not seen.waits:
        return False
    accepted, is_news = row[4], row[7]
    return not (is_news and accepted is not None and seen.run == str(accepted))


def _closable(row: tuple[Any, ...], found: Mapping[int, Seen], existing: set[int]) -> bool:
    """Rows locked by somebody else stay open; a refused row that the control table lacks stays refused."""
    if row[1] in found:
        return True
    return row[1] not in existing and row[2] == EntryState.ACCEPTED.value
