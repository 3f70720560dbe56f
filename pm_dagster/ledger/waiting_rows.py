"""The rows that wait: read by the driver or, as text, by another client; and those that wait and cannot be taken.

Rows are read together, and one by one where one of them cannot be read. Other clients map types in their own way: Spark
3.5 cannot take some types of Postgres, shifts times by its own zone and cuts a numeric without scale at 18 places
(``PostgresDialect``, ``JdbcUtils``). So for them every value crosses as text. What the server writes as text is what
the driver gets on its own connection, so the same functions of the driver make the same values of it.

Whether a row can be locked is found out by locking it, in a transaction that writes nothing: only so is row security
asked, and only so is another session's lock seen. Where we may lock nothing, with a reader's role or on a standby, rows
count as they are shown.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from typing import Any

import psycopg2
from psycopg2 import errors, extensions, sql
from psycopg2.extensions import cursor as Cursor  # noqa: N812 the driver's class has a lower-case name

from pm_dagster.config.settings import Settings
from pm_dagster.dispatch.untakeable import RowFacts, Untakeable, untakeable
from pm_dagster.dispatch.waiting_job import RawRow
from pm_dagster.errors import ConfigurationError, ControlPlaneUnavailable
from pm_dagster.ledger.connection import LOCAL_SETTINGS, STATEMENT_SECONDS, named_rows, translate
from pm_dagster.ledger.control_table_sql import ControlTableStatements, parameter_names
from pm_dagster.ledger.session import Session

_LIMIT = "SELECT set_config('statement_timeout', %(limit)s, true)"
#: The server's clock for a statement starts a little before or after ours.
_TOLERANCE_SECONDS = 0.1
#: What decides how the server writes values, and the limits of a statement:
#: https://www.postgresql.org/docs/current/runtime-config-client.html
_SETTINGS = (
    "DateStyle",
    "IntervalStyle",
    "TimeZone",
    "bytea_output",
    "extra_float_digits",
    "jit",
    "lc_monetary",
    "lock_timeout",
    "statement_timeout",
    "xmlbinary",
)
_SESSION = """
SELECT 'SELECT ' || string_agg(format('set_config(%%L, %%L, false)', name, value), ', ')
FROM (SELECT name, current_setting(name) FROM unnest(%(names)s) AS name
      UNION ALL VALUES ('default_transaction_read_only', 'on')) AS settings(name, value)"""
# ``format`` calls the type's output function; a cast to text does not for every type. ``IS DISTINCT FROM NULL`` is no
# comparison, which some types lack, and holds for a composite value whose fields are null.
_VALUE = sql.SQL("CASE WHEN {0} IS DISTINCT FROM NULL THEN format('%%s', {0}) END AS {0}")
#: So many rows are locked at most to see whether row security lets us; more would write as many records to the WAL.
_MOST_TRIED = 1000


@contextmanager
def reading_view(cursor: Cursor, settings: Settings) -> Iterator[None]:
    """Give what is inside PM_VIEW_TIMEOUT_SECONDS, and name the view when it is broken off.

    Inside a transaction, of which a statement has begun with ``LOCAL_SETTINGS``. Raises ControlPlaneUnavailable: the
    next try may find fewer rows, a faster plan, or no lock.
    """
    limit = settings.view_timeout_seconds
    if limit != STATEMENT_SECONDS:
        cursor.execute(_LIMIT, {"limit": f"{round(limit * 1000)}ms"})
    began = time.monotonic()
    try:
        yield
    except (errors.QueryCanceled, errors.LockNotAvailable) as error:
        raise _broken_off(error, settings, time.monotonic() - began) from None
    if limit != STATEMENT_SECONDS:
        cursor.execute(LOCAL_SETTINGS)


def _broken_off(error: psycopg2.Error, settings: Settings, seconds: float) -> ControlPlaneUnavailable:
    """The server has one code for its time-out and for a person who cancels; only the time tells them apart."""
    view = f"view {settings.schema}.{settings.wait_view} (PM_WAIT_VIEW)"
    said = next(iter(str(error).splitlines()), "").strip()
    limit = settings.view_timeout_seconds
    if isinstance(error, errors.LockNotAvailable):
        return ControlPlaneUnavailable(
            f"the {view} could not be read: another session holds a lock that we need (see pg_locks): {said}"
        )
    if seconds >= limit - _TOLERANCE_SECONDS:
        return ControlPlaneUnavailable(
            f"the {view} takes longer to read than the {limit:g} s of PM_VIEW_TIMEOUT_SECONDS: make it faster, or allow"
            f" it more: {said}"
        )
    return ControlPlaneUnavailable(
        f"the reading of the {view} was cancelled after {seconds:.1f} s, before the {limit:g} s of"
        f" PM_VIEW_TIMEOUT_SECONDS: somebody did it (pg_cancel_backend), or a pooler's time-out: {said}"
    )


def read_waiting(
    cursor: Cursor, statements: ControlTableStatements, settings: Settings, names: Mapping[str, Any]
) -> list[RawRow]:
    """The oldest rows that a dispatch may take; ``names`` are the statement's parameters, ``limit`` among them.

    A row whose values the view cannot compute, or that are no text, comes without them and with the reason. Raises
    ConfigurationError, naming the view, when not even the ids can be read.
    """
    return _read(cursor, statements, settings, names, (statements.waiting, statements.waiting_ids))


def read_next(
    cursor: Cursor, statements: ControlTableStatements, settings: Settings, names: Mapping[str, Any]
) -> list[RawRow]:
    """The oldest rows that a dispatch may take, none of them among ``seen``."""
    return _read(cursor, statements, settings, names, (statements.next, statements.next_ids))


def read_current(
    cursor: Cursor, statements: ControlTableStatements, settings: Settings, names: Mapping[str, Any]
) -> list[RawRow]:
    """The rows ``run_ids`` as the view shows them now, in no order; the same otherwise."""
    return _read(cursor, statements, settings, names, (statements.current, statements.current_ids))


def _read(
    cursor: Cursor,
    statements: ControlTableStatements,
    settings: Settings,
    names: Mapping[str, Any],
    wanted: tuple[sql.Composed, sql.Composed],
) -> list[RawRow]:
    whole, ids = wanted
    try:
        with reading_view(cursor, settings):
            rows = _run(cursor, whole, names)
        return [_raw_row(row._asdict(), settings) for row in rows]
    except (psycopg2.DataError, UnicodeDecodeError):
        cursor.execute("ROLLBACK TO SAVEPOINT reading")
    except psycopg2.ProgrammingError as error:
        raise _in_full(error, settings) from None
    try:
        with reading_view(cursor, settings):
            rows = _run(cursor, ids, names)
    except psycopg2.DataError as error:
        raise _in_full(error, settings) from None
    by_id = {row.run_id: row for row in rows if row.run_id is not None}
    read = [raw for row in by_id.values() for raw in _one(cursor, statements, settings, names, row)]
    return read + [
        RawRow(None, None, None, {}, _moment(row.arrived), row.in_table) for row in rows if row.run_id is None
    ]


def _one(
    cursor: Cursor,
    statements: ControlTableStatements,
    settings: Settings,
    names: Mapping[str, Any],
    found: Any,  # noqa: ANN401 a row of the driver
) -> list[RawRow]:
    try:
        with reading_view(cursor, settings):
            rows = _run(cursor, statements.current, {**names, "run_ids": [found.run_id]})
    except psycopg2.DataError as error:
        why = str(translate(error))
    except UnicodeDecodeError as error:
        why = f"it holds bytes that are no text in UTF-8: {error.object[error.start : error.end]!r}"
    else:
        return [_raw_row(row._asdict(), settings) for row in rows]
    cursor.execute("ROLLBACK TO SAVEPOINT reading")
    return [RawRow(found.run_id, None, None, {}, _moment(found.arrived), found.in_table, unreadable=why)]


def _run(cursor: Cursor, statement: Any, names: Mapping[str, Any]) -> list[Any]:  # noqa: ANN401 composed
    cursor.execute("SAVEPOINT reading")
    cursor.execute(statement, names)
    rows = named_rows(cursor)
    cursor.execute("RELEASE SAVEPOINT reading")
    return rows


def _in_full(error: psycopg2.Error, settings: Settings) -> Exception:
    found = translate(error)
    if not isinstance(found, ConfigurationError):
        return found
    order = f", in the order of {settings.column_order} (PM_COLUMN_ORDER)," if settings.column_order else ""
    return ConfigurationError(f"{settings.schema}.{settings.wait_view} (PM_WAIT_VIEW){order} cannot be read: {found}")


def _raw_row(values: Mapping[str, Any], settings: Settings) -> RawRow:
    """The row from the values that the driver made of its columns, by their names; the time of arrival has a zone."""
    return RawRow(
        values["run_id"],
        values["job_id"],
        values["job_run_id"],
        {
            name: values[column]
            for column, (name, _) in zip(parameter_names(settings), settings.job_parameters, strict=True)
        },
        _moment(values["arrived"]),
        values["in_table"],
    )


def _moment(value: object) -> datetime | None:
    return value if isinstance(value, datetime) else None


@dataclass(frozen=True)
class TextRead:
    """``query`` gives, in no order, a row's place among the oldest and then its values as text.

    ``session`` must have run in the same session before: it makes the server write values as ours gets them.
    ``columns`` are the names and types of the values.
    """

    query: str
    session: str
    columns: tuple[tuple[str, int], ...]


class WaitingAsText:
    """Reads for ``settings``; connects when first used and registers no dispatcher. Not thread-safe."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._session = Session(settings, actor="")

    def read(self, limit: int) -> TextRead:
        """The read of ``ControlPlane.waiting``. Raises what that raises."""

        def work(cursor: Cursor) -> TextRead:
            waiting = self._session.statements.waiting
            cursor.execute(waiting, {**self._session.names, "limit": 0})
            columns = tuple((column.name, column.type_code) for column in cursor.description or ())
            query = cursor.mogrify(
                _as_text(waiting, [name for name, _ in columns]), {**self._session.names, "limit": limit}
            )
            with reading_view(cursor, self._settings):
                cursor.execute(_SESSION, {"names": list(_SETTINGS)})
                (session,) = cursor.fetchone() or ("",)
            return TextRead(query.decode(_codec(cursor)), session, columns)

        return self._session.read(work)

    def rows(self, read: TextRead, found: Iterable[Sequence[object]]) -> list[RawRow]:
        """The rows of the query, oldest first, as ``ControlPlane.waiting`` gives them."""
        texts = [[None if text is None else str(text) for text in row[1:]] for row in sorted(found, key=_place)]

        def work(cursor: Cursor) -> list[RawRow]:
            readers = [(name, _reader(cursor, type_)) for name, type_ in read.columns]
            return [
                _raw_row(
                    {name: reader(text) for (name, reader), text in zip(readers, row, strict=True)}, self._settings
                )
                for row in texts
            ]

        return self._session.read(work)

    def end(self) -> None:
        """Close the connection."""
        self._session.end()


def _as_text(waiting: sql.Composable, columns: Sequence[str]) -> sql.Composed:
    """The statement wrapped; a client that wraps it again may lose its order, so the place becomes a column."""
    names = [sql.Identifier(name) for name in columns]
    return sql.SQL(
        "SELECT row_number() OVER (ORDER BY arrived NULLS LAST, run_id) AS place, {values} FROM ({waiting}) AS waiting"
    ).format(values=sql.SQL(", ").join(_VALUE.format(name) for name in names), waiting=waiting)


def _place(row: Sequence[object]) -> int:
    return int(str(row[0]))


def _codec(cursor: Cursor) -> str:
    return extensions.encodings[cursor.connection.encoding]


def _reader(cursor: Cursor, type_: int) -> Callable[[str | None], object]:
    """What the driver does with a value of this type; it takes bytes, as they came over the wire."""
    known = {**extensions.string_types, **cursor.connection.string_types}
    cast = known.get(type_, extensions.UNICODE)
    codec = _codec(cursor)
    return lambda text: None if text is None else cast(text.encode(codec), cursor)


class _Questions:
    """Questions about the owner's rows within a transaction of ``cursor``.

    ``names`` are the parameters that statements share.
    """

    def __init__(
        self, cursor: Cursor, statements: ControlTableStatements, settings: Settings, names: Mapping[str, Any]
    ) -> None:
        self._cursor = cursor
        self._statements = statements
        self._settings = settings
        self._names = names


class Locks(_Questions):
    """Tries to lock rows, and gives the locks back."""

    @cached_property
    def _may(self) -> tuple[bool, bool]:
        """Whether row security is active for us on the control table, and whether we may lock its rows."""
        place = {"schema": self._settings.schema, "table": self._settings.run_table}
        self._cursor.execute(self._statements.may, place)
        found = named_rows(self._cursor)
        return (found[0].row_security, found[0].lockable) if found else (False, False)

    @property
    def row_security(self) -> bool:
        """Whether row security is active for us on the control table."""
        return self._may[0]

    def hidden(self, free: int) -> int:
        """How many of so many free rows row security keeps from us for good."""
        row_security, lockable = self._may if free else (False, False)
        if not row_security or not lockable:
            return 0
        ours = self._try(self._statements.changeable_some, limit=_MOST_TRIED)
        return 0 if ours is None or len(ours) >= min(free, _MOST_TRIED) else free - len(ours)

    def locked(self, free: int) -> int:
        """How many of so many free rows are locked by others, if all are; one lock tells."""
        if not free or not self._may[1]:
            return 0
        return free if self._try(self._statements.lockable, limit=1) == [] else 0

    def answers_locked(self, left_behind: int) -> int:
        """Of so many entries of dead dispatchers: those whose answer cannot be written, for the row is locked."""
        if not left_behind or not self._may[1]:
            return 0
        found = self._try(self._statements.locked_answers, limit=_MOST_TRIED)
        return found[0] if found else 0

    def hidden_among(self, run_ids: Sequence[int]) -> set[int]:
        """Those of the rows that row security keeps from us, as far as nobody holds them for deletion."""
        row_security, lockable = self._may
        if not run_ids or not row_security or not lockable:
            return set()
        ours = self._try(self._statements.changeable, run_ids=list(run_ids))
        return set() if ours is None else set(run_ids) - set(ours)

    def held_among(self, run_ids: Sequence[int]) -> set[int]:
        """Those of the waiting rows that somebody else holds locked, and that are not kept from us anyway."""
        if not run_ids or not self._may[1]:
            return set()
        unlocked = self._try(self._statements.unlocked, run_ids=list(run_ids))
        waiting = self._try(self._statements.waiting_still, run_ids=list(run_ids))
        return set(waiting or ()) - set(unlocked or ()) - self.hidden_among(run_ids) if unlocked is not None else set()

    def _try(self, statement: Any, **names: object) -> list[int] | None:  # noqa: ANN401 composed
        """The first column of what can be locked; None where nothing of the kind can be locked at all."""
        self._cursor.execute("SAVEPOINT trying")
        try:
            with reading_view(self._cursor, self._settings):
                self._cursor.execute(statement, {**self._names, **names})
            found = [int(value) for (value,) in named_rows(self._cursor)]
        except psycopg2.Error as error:
            if not isinstance(translate(error), ConfigurationError):
                raise
            found = None
        # The locks go with it.
        self._cursor.execute("ROLLBACK TO SAVEPOINT trying")
        return found


class UntakeableRows(_Questions):
    """Finds the rows that no dispatch can take as they are."""

    @cached_property
    def _locks(self) -> Locks:
        return Locks(self._cursor, self._statements, self._settings, self._names)

    def found(self, limit: int) -> list[Untakeable]:
        """All of them, at most ``limit``."""
        rows = self._told(self._facts(self._statements.untakeable, limit=limit))
        if len(rows) < limit and self._locks.row_security:
            self._cursor.execute(self._statements.candidates, {**self._names, "limit": _MOST_TRIED})
            hidden = self._locks.hidden_among([int(row.run_id) for row in named_rows(self._cursor)])
            rows += self.among(sorted(hidden)[: limit - len(rows)])
        return rows[:limit]

    def among(self, run_ids: Sequence[int]) -> list[Untakeable]:
        """Those among the rows."""
        if not run_ids:
            return []
        hidden = self._locks.hidden_among(run_ids)
        facts = self._facts(self._statements.facts, run_ids=list(run_ids))
        return self._told(replace(row, lockable=row.run_id not in hidden) for row in facts)

    def _facts(self, statement: Any, **names: object) -> list[RowFacts]:  # noqa: ANN401 composed
        with reading_view(self._cursor, self._settings):
            self._cursor.execute(statement, {**self._names, **names})
        return [RowFacts(**row._asdict()) for row in named_rows(self._cursor)]

    def _told(self, facts: Iterable[RowFacts]) -> list[Untakeable]:
        security = self._locks.row_security
        told = [untakeable(row, self._settings, row_security=security) for row in facts]
        return [row for row in told if row is not None]
