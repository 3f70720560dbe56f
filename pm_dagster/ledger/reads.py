"""What the ledger and the control table know, for `pm status`, `pm explain` and `pm doctor`; nothing here writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from psycopg2.extensions import connection as Connection  # noqa: N812
from psycopg2.extras import RealDictCursor
from psycopg2.sql import SQL, Composed

from pm_dagster.config.settings import Settings
from pm_dagster.ledger.connection import translated
from pm_dagster.ledger.control_table_sql import ControlTableStatements
from pm_dagster.ledger.layout import read_layout
from pm_dagster.ledger.ledger_sql import DISPATCHER_LIVES
from pm_dagster.ledger.schema import LEDGER_SCHEMA, quoted
from pm_dagster.ledger.waiting_rows import reading_view

Row = dict[str, Any]

_STATES = """
SELECT state, true AS open, count(*) AS entries FROM {ledger}.entry WHERE control_table = %(table)s AND open
GROUP BY state
UNION ALL
SELECT state, false AS open, count(*) AS entries FROM {ledger}.entry WHERE control_table = %(table)s AND NOT open
GROUP BY state ORDER BY open DESC, state
"""
_DISPATCHERS = (
    """
SELECT d.dispatcher_id, d.actor, d.liveness, d.started_at, d.ended_at, d.ended_as,
       (SELECT count(*) FROM {ledger}.entry e WHERE e.dispatcher_id = d.dispatcher_id) AS entries,
       """
    + DISPATCHER_LIVES
    + """ AS alive
FROM {ledger}.dispatcher d ORDER BY d.dispatcher_id DESC LIMIT %(limit)s
"""
)
_QUARANTINED = """
SELECT * FROM (
    SELECT {once} e.run_id, e.generation, e.branch, e.state, e.job_id, e.reason,
           e.open, e.updated_at, t.{status}::text AS control_status
    FROM {ledger}.entry e LEFT JOIN {table} t ON t.{run_id} = e.run_id
    WHERE e.control_table = %(table)s AND e.state = 'QUARANTINED' AND NOT EXISTS (
        SELECT 1 FROM {ledger}.entry n
        WHERE n.control_table = e.control_table AND n.run_id = e.run_id AND n.generation > e.generation)
    {by_id}
) latest
WHERE open OR control_status = %(failed)s
ORDER BY updated_at DESC LIMIT %(limit)s
"""
_ENTRIES = (
    """
SELECT e.*, d.actor, d.started_at AS dispatcher_started_at, """
    + DISPATCHER_LIVES
    + """ AS dispatcher_alive, coalesce(e.not_before > now(), false) AS backing_off
FROM {ledger}.entry e LEFT JOIN {ledger}.dispatcher d USING (dispatcher_id)
WHERE e.control_table = %(table)s AND e.run_id = ANY(%(run_ids)s)
ORDER BY e.run_id, e.generation
"""
)
_EVENTS = """
SELECT entry_id, dispatcher_id, at, kind, call, status, seconds, detail FROM {ledger}.event
WHERE entry_id = ANY(%(entries)s) ORDER BY event_id
"""


def ledger_states(connection: Connection, settings: Settings) -> list[Row]:
    """Entries by state, open ones first."""
    return _rows(connection, _ledger(_STATES), {"table": settings.control_table})


def last_dispatchers(connection: Connection, limit: int = 5) -> list[Row]:
    """The newest dispatchers, and whether each lives."""
    return _rows(connection, _ledger(_DISPATCHERS), {"limit": limit})


def quarantined(connection: Connection, settings: Settings, limit: int = 20) -> list[Row]:
    """Refused rows that nobody has put back yet, newest first."""
    values = {
        "table": settings.control_table,
        "failed": settings.status_failed,
        "limit": limit,
    }
    # Only without a key can the table hold several rows of the id. With one, the newest are read and no more.
    one = read_layout(connection, settings).one_row_per_id
    query = SQL(_QUARANTINED).format(
        once=SQL("" if one else "DISTINCT ON (e.run_id)"),
        by_id=SQL("" if one else "ORDER BY e.run_id"),
        ledger=quoted(LEDGER_SCHEMA),
        table=quoted(settings.schema, settings.run_table),
        run_id=quoted(settings.column_run_id),
        status=quoted(settings.column_status),
    )
    return _rows(connection, query, values)


def control_row(connection: Connection, settings: Settings, run_id: int) -> Row | None:
    """The row of the control table as it stands, None when there is none."""
    return control_row_and_waits(connection, settings, run_id)[0]


def control_row_and_waits(connection: Connection, settings: Settings, run_id: int) -> tuple[Row | None, bool]:
    """The same, and whether the table itself says that it waits.

    Of several rows of the id the one that waits is meant.
    """
    statements = ControlTableStatements(settings, read_layout(connection, settings))
    with translated(), connection.cursor() as cursor:
        cursor.execute(statements.control_row, {"run_id": run_id, "waiting": settings.status_waiting})
        values = cursor.fetchone()
        names = [column.name for column in cursor.description or ()]
    if values is None:
        return None, False
    return dict(zip(names[:-1], values[:-1], strict=True)), bool(values[-1])


def in_view(connection: Connection, settings: Settings, run_id: int) -> bool:
    """Whether the view of waiting jobs shows the row."""
    query = SQL("SELECT EXISTS (SELECT FROM {view} WHERE {run_id} = %(run_id)s) AS shown").format(
        view=quoted(settings.schema, settings.wait_view),
        run_id=quoted(settings.column_run_id),
    )
    with translated(), connection.cursor() as cursor, reading_view(cursor, settings):
        cursor.execute(query, {"run_id": run_id})
        return bool((cursor.fetchone() or (False,))[0])


def entries(connection: Connection, settings: Settings, run_ids: Sequence[int]) -> list[Row]:
    """All generations of the rows, oldest first, each with its dispatcher."""
    values = {
        "table": settings.control_table,
        "run_ids": list(run_ids),
    }
    return _rows(connection, _ledger(_ENTRIES), values)


def events(connection: Connection, entry_ids: Sequence[int]) -> list[Row]:
    """The history of the entries, in order."""
    return _rows(connection, _ledger(_EVENTS), {"entries": list(entry_ids)})


def _ledger(text: str) -> Composed:
    return SQL(text).format(ledger=quoted(LEDGER_SCHEMA))


def _rows(connection: Connection, query: Composed, values: Mapping[str, Any]) -> list[Row]:
    with translated(), connection.cursor(cursor_factory=RealDictCursor) as cursor:
        cursor.execute(query, values)
        return [dict(row) for row in cursor.fetchall()]
