"""The end of an entry: the control table says what became of the row, and the ledger closes it, in one transaction.

A table can refuse a row (a trigger, a constraint, an enumeration without the word), drop the write or undo it. That is
the row's own trouble: its entry stays open, so that it is never run a second time, and says why; the others are closed.

The same write is rehearsed before anything is started, and undone at once: the catalog tells what a column can hold,
but what a trigger, a rule, a constraint, a foreign key, a policy or a view with a computed status make of a write only
the write itself tells. It is undone with all that the owner's triggers did in the database; they have to bear that
anyway, as any transaction may fail. PM_REHEARSE=off spares a table whose triggers reach outside of it.
"""

from __future__ import annotations

import contextlib
import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg2
from psycopg2 import errorcodes
from psycopg2.extensions import connection as Connection  # noqa: N812 the driver's class has a lower-case name
from psycopg2.extensions import cursor as Cursor  # noqa: N812

from pm_dagster.config.masking import scrubbed
from pm_dagster.config.settings import Settings
from pm_dagster.dispatch.model import EntryState
from pm_dagster.dispatch.ports import Event
from pm_dagster.errors import ConfigurationError
from pm_dagster.ledger import ledger_sql
from pm_dagster.ledger.connection import LOCAL_SETTINGS, named_cursor, named_rows, translate
from pm_dagster.ledger.control_table_sql import ControlTableStatements
from pm_dagster.ledger.layout import read_layout, statuses_refused
from pm_dagster.ledger.ledger_sql import as_json, storable
from pm_dagster.logs import fields

_log = logging.getLogger(__name__)

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
#: So long may the rehearsal of all rows together take; where they do not fit, one of them stands for all.
_LONGEST_REHEARSAL_SECONDS = 2.0
#: Values to rehearse with, as long as they get in practice: 16 digits, the link of a workspace in Azure, a message of
#: a line.
_RUN = 9_000_000_000_000_000
_URL = "https://adb-1234567890123456.10.azuredatabricks.net/jobs/123456789012345/runs/{}?o=1234567890123456"
_MESSAGE = "run {} was started"


class TooSlow(Exception):
    """Several rows together took longer than they may. Nothing of the transaction may be kept."""


@dataclass(frozen=True)
class Due:
    """An entry that is to be closed, as ``TO_CLOSE`` gives it; ``is_news``: the row cannot know the run yet."""

    entry_id: int
    run_id: int
    state: str
    succeeded: bool
    accepted_run_id: int | None
    page_url: str | None
    reason: str | None
    is_news: bool


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
        statements: ControlTableStatements,
        settings: Settings,
        names: Mapping[str, Any],
        corrected: Callable[[Mapping[int, int | None]], set[int]] = lambda _runs: set(),
    ) -> None:
        self._cursor = cursor
        self._statements = statements
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
        due = [Due(**row._asdict()) for row in self._run(ledger_sql.TO_CLOSE, entry_ids=list(entry_ids))]
        run_ids = [entry.run_id for entry in due]
        found: dict[int, Seen] = {}
        for row in self._run(self._statements.lock_rows, run_ids=run_ids):
            # Without a key a table can hold several rows of one id: the one that waits is meant.
            if row.run_id not in found or row.waits:
                found[row.run_id] = Seen(row.status, row.waits, row.run)
        # Under the row locks: what the rows say now is what is written over, or left to the next generation.
        waiting = [entry for entry in due if entry.run_id in found and found[entry.run_id].waits]
        corrected = self._corrected({entry.entry_id: entry.accepted_run_id for entry in waiting})
        due = [entry for entry in due if entry.entry_id not in corrected]
        existing = {row.run_id for row in self._run(self._statements.existing, run_ids=run_ids)}
        failed = self._write([self._row_write(entry) for entry in due if _to_write(entry, found.get(entry.run_id))])
        closable = [entry for entry in due if entry.run_id not in failed and _closable(entry, found, existing)]
        self._cursor.execute(LOCAL_SETTINGS)
        self._run(ledger_sql.CLOSE_ENTRIES, entry_ids=[entry.entry_id for entry in closable])
        self._put_off([entry for entry in due if entry.run_id in failed], failed)
        for entry in closable:
            if entry.run_id in self._bare:
                _log.info(
                    "row closed without link and message",
                    extra=fields(run_id=entry.run_id, entry=entry.entry_id, reason=scrubbed(self._bare[entry.run_id])),
                )
        return [(entry.entry_id, self._closing_event(entry, found)) for entry in closable]

    def rehearse(self, rows: Sequence[Mapping[str, Any]], limit: float, *, alone: bool = False) -> dict[int, str]:
        """Write the rows and undo it; gives, by run id, why one would not be closed.

        Raises TooSlow when they take longer than ``limit`` seconds together, unless it is one row ``alone``.
        """
        self._alone, self._limit = alone, limit
        self._cursor.execute("SAVEPOINT rehearsal")
        failed = self._write(rows)
        self._cursor.execute("ROLLBACK TO SAVEPOINT rehearsal")
        return failed

    def refused(self, runs: Mapping[int, int | None]) -> dict[int, str]:
        """Why the control table would not take SCHEDULED, by the ids of the rows whose closing it refuses.

        ``runs`` has the rows, locked by this transaction, with the run that each of them names. Raises TooSlow when
        they take too long together: then nothing of the transaction may be kept, and ``refused_by_sample`` is to be
        asked in another.
        """
        return self.rehearse(_writes(self._settings.status_scheduled, runs), _LONGEST_REHEARSAL_SECONDS)

    def refused_by_sample(self, runs: Mapping[int, int | None]) -> dict[int, str]:
        """The same for a slow table: one row has all the time that a row may take, and what it says goes for all."""
        # Another one each time, so that a single slow row does not keep back the others for ever.
        row = random.choice(list(runs))  # noqa: S311 no secret
        sample = _writes(self._settings.status_scheduled, {row: runs[row]})
        failed = self.rehearse(sample, self._settings.row_seconds, alone=True)
        if not failed:
            return {}
        return {each: failed[row] if each == row else f"tried with row {row}: {failed[row]}" for each in runs}

    def _run(self, statement: Any, **names: object) -> list[Any]:  # noqa: ANN401 text or composed
        self._cursor.execute(statement, {**self._names, **names})
        return named_rows(self._cursor) if self._cursor.description is not None else []

    def _write(self, rows: Sequence[Mapping[str, Any]]) -> dict[int, str]:
        """Write the rows; gives, by run id, why one was not: all at once, and in halves where the table refuses."""
        if not rows:
            return {}
        began = time.monotonic()
        try:
            return self._try(rows, self._statements.write_rows)
        except psycopg2.Error as error:
            what = translate(error)
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
        _log.info("batch of a closing halved", extra=fields(rows=len(rows), error=scrubbed(str(what))))
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
            failed = self._try(rows, self._statements.write_bare)
        except psycopg2.Error as error:
            if not _is_of_the_rows(error, translate(error)):
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
        waiting = self._run(self._statements.waiting_still, run_ids=[row["run_id"] for row in rows])
        self._cursor.execute("RELEASE SAVEPOINT closing")
        table, status = self._settings.control_table, self._settings.status_waiting
        why = f"{table} still says {status} after the write: a trigger or rule of its owner keeps it so"
        return {row.run_id: why for row in waiting}

    def _put_off(self, entries: Sequence[Due], failed: Mapping[int, str]) -> None:
        """Leave the entries open for a while; ``failed`` says why, by run id."""
        if not entries:
            return
        for entry in entries:
            _log.warning(
                "control table refuses a row",
                extra=fields(run_id=entry.run_id, entry=entry.entry_id, reason=scrubbed(failed[entry.run_id])),
            )
        rows = [{"entry_id": entry.entry_id, "detail": storable(failed[entry.run_id])} for entry in entries]
        pause = self._settings.settle_seconds + (self._limit * _SLOW_ROW_PAUSES if self._slow else 0.0)
        self._run(ledger_sql.NOT_CLOSED, rows=as_json(self._cursor, rows), seconds=pause)

    def _status_for(self, entry: Due) -> str:
        if entry.state == EntryState.QUARANTINED.value:
            return self._settings.status_failed
        return self._settings.status_succeeded if entry.succeeded else self._settings.status_scheduled

    def _row_write(self, entry: Due) -> dict[str, Any]:
        return {
            "run_id": entry.run_id,
            "status": self._status_for(entry),
            "run": entry.accepted_run_id,
            "url": entry.page_url,
            "message": entry.reason,
        }

    def _closing_event(self, entry: Due, found: Mapping[int, Seen]) -> Event:
        seen = found.get(entry.run_id)
        if seen is None or not seen.waits:
            return Event("closed", f"control table already says {seen and seen.status}; not changed")
        if not _to_write(entry, seen):
            said = f"control table still says {seen.status} with run {seen.run}"
            return Event("closed", f"{said}: requested again, left for the next dispatch")
        without = f", without link and message: {self._bare[entry.run_id]}" if entry.run_id in self._bare else ""
        written = f"control table set from {seen.status} to {self._status_for(entry)}{without}"
        return Event("closed", storable(written))


def _is_of_the_rows(error: psycopg2.Error, what: Exception) -> bool:
    """Whether what went wrong may be about some of the rows; a lock is one that a trigger waits for."""
    if error.pgcode == errorcodes.LOCK_NOT_AVAILABLE:
        return True
    return isinstance(what, ConfigurationError)


def _to_write(entry: Due, seen: Seen | None) -> bool:
    """A row that waits is written, unless it names our run, of which only somebody who saw it can know.

    That one asks for what comes after it, such as its repair: the row is left to the next dispatch.
    """
    if seen is None or not seen.waits:
        return False
    return not (entry.is_news and entry.accepted_run_id is not None and seen.run == str(entry.accepted_run_id))


def _closable(entry: Due, found: Mapping[int, Seen], existing: set[int]) -> bool:
    """Rows locked by somebody else stay open; a refused row that the control table lacks stays refused."""
    if entry.run_id in found:
        return True
    return entry.run_id not in existing and entry.state == EntryState.ACCEPTED.value


def rehearse_all(connection: Connection, settings: Settings, run_ids: list[int]) -> tuple[bool, str]:
    """Whether these waiting rows could be closed, with each status, and in what words `pm doctor` says so.

    The transaction is rolled back.
    """
    layout = read_layout(connection, settings)
    wrong = statuses_refused(settings, layout.table[settings.column_status])
    statements = ControlTableStatements(settings, layout)
    names = {"me": 0, "waiting": settings.status_waiting, "control_table": settings.control_table}
    tried: list[int] = []
    with contextlib.closing(named_cursor(connection)) as cursor:
        cursor.execute(statements.lock_waiting, {**names, "run_ids": run_ids})
        tried = [row.run_id for row in named_rows(cursor)]
        for variable, status in () if wrong else _statuses(settings):
            failed = _failed(connection, cursor, statements, settings, names, tried, status)
            if failed:
                row, why = next(iter(failed.items()))
                wrong.append(
                    f"{len(failed)} of {len(tried)} rows cannot be set to {status} ({variable}); row {row}: {why}"
                )
    connection.rollback()
    if wrong:
        return False, "; ".join(wrong)
    if not tried:
        return True, f"no row waits to try it with; the columns of {settings.control_table} hold what is written"
    return True, f"{settings.control_table} takes all that is written, as tried with {len(tried)} rows and undone"


def _statuses(settings: Settings) -> list[tuple[str, str]]:
    return [
        ("PM_STATUS_SCHEDULED", settings.status_scheduled),
        ("PM_STATUS_FAILED", settings.status_failed),
        ("PM_STATUS_SUCCEEDED", settings.status_succeeded),
    ]


def _failed(
    connection: Connection,
    cursor: Cursor,
    statements: ControlTableStatements,
    settings: Settings,
    names: Mapping[str, Any],
    run_ids: list[int],
    status: str,
) -> dict[int, str]:
    runs = dict.fromkeys(run_ids, None)
    try:
        return Closing(cursor, statements, settings, names).rehearse(_writes(status, runs), _LONGEST_REHEARSAL_SECONDS)
    except TooSlow:
        connection.rollback()
        one = _writes(status, dict(list(runs.items())[:1]))
        return Closing(cursor, statements, settings, names).rehearse(one, settings.row_seconds, alone=True)


def _writes(status: str, runs: Mapping[int, int | None]) -> list[dict[str, Any]]:
    found = []
    for number, (row, named) in enumerate(runs.items()):
        # Another for each row, for the owner may demand that no two name the same.
        run = named or _RUN + number
        message = _MESSAGE.format(run)
        found.append({"run_id": row, "status": status, "run": run, "url": _URL.format(run), "message": message})
    return found
