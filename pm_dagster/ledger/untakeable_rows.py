"""Rows that wait and that we cannot have: which, and whether for good or only at this moment.

Put here: what is asked of the database for it. Keep out: the statements, and the words (``core.untakeable``).

Whether a row can be locked is found out by locking it, in a transaction that writes nothing: only so is row security
asked, and only so is another session's lock seen. Where we may lock nothing, a reader's role or a standby, rows count
as they are shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import psycopg2
from psycopg2.extensions import cursor as Cursor  # noqa: N812 the driver's class has a lower-case name

from pm_dagster.config.settings import Settings
from pm_dagster.dispatch.untakeable import RowFacts, Untakeable, untakeable
from pm_dagster.errors import ConfigurationError
from pm_dagster.ledger.connection import in_our_words
from pm_dagster.ledger.control_statements import Statements
from pm_dagster.ledger.view_reading import reading_view

#: So many rows are locked at most to see whether row security lets us; more would write as many records to the WAL.
_MOST_TRIED = 1000


class Locks:
    """Tries to lock within a transaction of ``cursor``. ``names`` are the parameters that statements share."""

    def __init__(self, cursor: Cursor, owners: Statements, settings: Settings, names: Mapping[str, Any]) -> None:
        self._cursor = cursor
        self._owners = owners
        self._settings = settings
        self._names = names

    @cached_property
    def _may(self) -> tuple[bool, bool]:
        """Whether row security is active for us on the control table, and whether we may lock its rows."""
        place = {"schema": self._settings.schema, "table": self._settings.run_table}
        self._cursor.execute(self._owners.may, place)
        row_security, lockable = self._cursor.fetchone() or (False, False)
        return bool(row_security), bool(lockable)

    @property
    def row_security(self) -> bool:
        """Whether row security is active for us on the control table."""
        return self._may[0]

    def hidden(self, free: int) -> int:
        """How many of so many free rows row security keeps from us for good."""
        row_security, lockable = self._may if free else (False, False)
        if not row_security or not lockable:
            return 0
        ours = self._try(self._owners.changeable_some, limit=_MOST_TRIED)
        return 0 if ours is None or len(ours) >= min(free, _MOST_TRIED) else free - len(ours)

    def locked(self, free: int) -> int:
        """How many of so many free rows are locked by others, if all are; one lock tells."""
        if not free or not self._may[1]:
            return 0
        return free if self._try(self._owners.lockable, limit=1) == [] else 0

    def answers_locked(self, left_behind: int) -> int:
        """Of so many entries of dead dispatchers: those whose answer cannot be written, for the row is locked."""
        if not left_behind or not self._may[1]:
            return 0
        found = self._try(self._owners.locked_answers, limit=_MOST_TRIED)
        return found[0] if found else 0

    def hidden_among(self, run_ids: Sequence[int]) -> set[int]:
        """Those of the rows that row security keeps from us, as far as nobody holds them for deletion."""
        row_security, lockable = self._may
        if not run_ids or not row_security or not lockable:
            return set()
        ours = self._try(self._owners.changeable, run_ids=list(run_ids))
        return set() if ours is None else set(run_ids) - set(ours)

    def held_among(self, run_ids: Sequence[int]) -> set[int]:
        """Those of the waiting rows that somebody else holds locked, and that are not kept from us anyway."""
        if not run_ids or not self._may[1]:
            return set()
        unlocked = self._try(self._owners.unlocked, run_ids=list(run_ids))
        waiting = self._try(self._owners.waiting_still, run_ids=list(run_ids))
        return set(waiting or ()) - set(unlocked or ()) - self.hidden_among(run_ids) if unlocked is not None else set()

    def _try(self, statement: Any, **names: object) -> list[int] | None:  # noqa: ANN401 composed
        """The first column of what can be locked; None where nothing of the kind can be locked at all."""
        self._cursor.execute("SAVEPOINT trying")
        try:
            with reading_view(self._cursor, self._settings):
                self._cursor.execute(statement, {**self._names, **names})
            found = [int(value) for (value,) in self._cursor.fetchall()]
        except psycopg2.Error as error:
            if not isinstance(in_our_words(error), ConfigurationError):
                raise
            found = None
        # The locks go with it.
        self._cursor.execute("ROLLBACK TO SAVEPOINT trying")
        return found


class UntakeableRows:
    """Finds them within a transaction of ``cursor``."""

    def __init__(self, cursor: Cursor, owners: Statements, settings: Settings, names: Mapping[str, Any]) -> None:
        self._cursor = cursor
        self._owners = owners
        self._settings = settings
        self._names = names
        self._locks = Locks(cursor, owners, settings, names)

    def found(self, limit: int) -> list[Untakeable]:
        """All of them, at most ``limit``."""
        rows = self._told(self._facts(self._owners.untakeable, limit=limit))
        if len(rows) < limit and self._locks.row_security:
            self._cursor.execute(self._owners.candidates, {**self._names, "limit": _MOST_TRIED})
            hidden = self._locks.hidden_among([int(run_id) for (run_id,) in self._cursor.fetchall()])
            rows += self.among(sorted(hidden)[: limit - len(rows)])
        return rows[:limit]

    def among(self, run_ids: Sequence[int]) -> list[Untakeable]:
        """Those among the rows."""
        if not run_ids:
            return []
        hidden = self._locks.hidden_among(run_ids)
        facts = self._facts(self._owners.facts, run_ids=list(run_ids))
        return self._told(replace(row, lockable=row.run_id not in hidden) for row in facts)

    def _facts(self, statement: Any, **names: object) -> list[RowFacts]:  # noqa: ANN401 composed
        with reading_view(self._cursor, self._settings):
            self._cursor.execute(statement, {**self._names, **names})
        return [_facts(row) for row in self._cursor.fetchall()]

    def _told(self, facts: Iterable[RowFacts]) -> list[Untakeable]:
        security = self._locks.row_security
        told = [untakeable(row, self._settings, row_security=security) for row in facts]
        return [row for row in told if row is not None]


def _facts(row: Sequence[Any]) -> RowFacts:
    run_id, has_place, in_table, status, waits, view_status, view_waits, met = row
    return RowFacts(
        run_id=run_id,
        has_place=has_place,
        in_table=in_table,
        status=status,
        waits=waits,
        view_status=view_status,
        view_waits=view_waits,
        met=met,
    )
