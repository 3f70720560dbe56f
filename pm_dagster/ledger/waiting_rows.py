"""The rows that wait, as raw rows, one by one where they cannot be read together.

Put here: reading them, and the order of their columns. Keep out: what a value means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import psycopg2
from psycopg2 import sql
from psycopg2.extensions import cursor as Cursor  # noqa: N812 the driver's class has a lower-case name

from pm_dagster.config.settings import Settings
from pm_dagster.dispatch.waiting_job import RawRow
from pm_dagster.errors import ConfigurationError
from pm_dagster.ledger.connection import in_our_words
from pm_dagster.ledger.control_statements import Statements
from pm_dagster.ledger.view_reading import reading_view


def read_waiting(cursor: Cursor, owners: Statements, settings: Settings, names: Mapping[str, Any]) -> list[RawRow]:
    """The oldest rows that a dispatch may take; ``names`` are the statement's parameters, ``limit`` among them.

    A row whose values the view cannot compute, or that are no text, comes without them and with the reason. Raises
    ConfigurationError, naming the view, when not even the ids can be read.
    """
    return _read(cursor, owners, settings, names, (owners.waiting, owners.waiting_ids))


def read_next(
    cursor: Cursor, owners: Statements, settings: Settings, names: Mapping[str, Any], *, locking: bool
) -> list[RawRow]:
    """The oldest rows that a dispatch may take, none of them among ``seen``; if ``locking``, that nobody else holds."""
    wanted = (owners.next, owners.next_ids) if locking else (owners.following, owners.following_ids)
    return _read(cursor, owners, settings, names, wanted)


def read_current(cursor: Cursor, owners: Statements, settings: Settings, names: Mapping[str, Any]) -> list[RawRow]:
    """The rows ``run_ids`` as the view shows them now, in no order; the same otherwise."""
    return _read(cursor, owners, settings, names, (owners.current, owners.current_ids))


def _read(
    cursor: Cursor,
    owners: Statements,
    settings: Settings,
    names: Mapping[str, Any],
    statements: tuple[sql.Composed, sql.Composed],
) -> list[RawRow]:
    whole, ids = statements
    try:
        with reading_view(cursor, settings):
            values_of_rows = _run(cursor, whole, names)
        return [raw_row(values, settings) for values in values_of_rows]
    except (psycopg2.DataError, UnicodeDecodeError):
        cursor.execute("ROLLBACK TO SAVEPOINT reading")
    except psycopg2.ProgrammingError as error:
        raise _in_full(error, settings) from None
    try:
        with reading_view(cursor, settings):
            rows = _run(cursor, ids, names)
    except psycopg2.DataError as error:
        raise _in_full(error, settings) from None
    found = {values[0]: values for values in rows if values[0] is not None}
    without = [values for values in rows if values[0] is None]
    read = [row for run_id in found for row in _one(cursor, owners, settings, names, found[run_id])]
    return read + [RawRow(None, None, None, {}, _moment(order), in_table) for _, in_table, order in without]


def _one(
    cursor: Cursor, owners: Statements, settings: Settings, names: Mapping[str, Any], found: Sequence[Any]
) -> list[RawRow]:
    run_id, in_table, order = found
    try:
        with reading_view(cursor, settings):
            rows = _run(cursor, owners.current, {**names, "run_ids": [run_id]})
    except psycopg2.DataError as error:
        why = str(in_our_words(error))
    except UnicodeDecodeError as error:
        why = f"it holds bytes that are no text in UTF-8: {error.object[error.start : error.end]!r}"
    else:
        return [raw_row(values, settings) for values in rows]
    cursor.execute("ROLLBACK TO SAVEPOINT reading")
    return [RawRow(run_id, None, None, {}, _moment(order), in_table, unreadable=why)]


def _run(cursor: Cursor, statement: Any, names: Mapping[str, Any]) -> list[tuple[Any, ...]]:  # noqa: ANN401 composed
    cursor.execute("SAVEPOINT reading")
    cursor.execute(statement, names)
    rows = cursor.fetchall()
    cursor.execute("RELEASE SAVEPOINT reading")
    return rows


def _in_full(error: psycopg2.Error, settings: Settings) -> Exception:
    found = in_our_words(error)
    if not isinstance(found, ConfigurationError):
        return found
    order = f", in the order of {settings.column_order} (PM_COLUMN_ORDER)," if settings.column_order else ""
    return ConfigurationError(f"{settings.schema}.{settings.wait_view} (PM_WAIT_VIEW){order} cannot be read: {found}")


def raw_row(values: Sequence[Any], settings: Settings) -> RawRow:
    """The row from the values that the driver made of its columns; the time of arrival has a zone."""
    run_id, in_table, order, job_id, job_run_id, *parameters = values
    names = [name for name, _ in settings.job_parameters]
    return RawRow(run_id, job_id, job_run_id, dict(zip(names, parameters, strict=True)), _moment(order), in_table)


def _moment(value: object) -> datetime | None:
    return value if isinstance(value, datetime) else None
