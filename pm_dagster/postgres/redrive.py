"""Puts refused rows back to WAITING, when a person says so.

Put here: the one write that is nobody's dispatch. Keep out: everything that a dispatch does.
"""

from __future__ import annotations

from collections.abc import Sequence

from psycopg2.extensions import connection as Connection  # noqa: N812
from psycopg2.extras import RealDictCursor
from psycopg2.sql import SQL

from pm_dagster.core.settings import Settings
from pm_dagster.postgres.connection import translated
from pm_dagster.postgres.schema import LEDGER_SCHEMA, quoted

# Guarded twice: by the status, so that a row that moved on is not set back, and by the newest
# ledger entry, so that a row that failed by itself stays the owner's business.
_REDRIVE = """
WITH refused AS (
    SELECT DISTINCT ON (run_id) entry_id, run_id, state FROM {ledger}.entry
    WHERE control_table = %(name)s AND run_id = ANY(%(run_ids)s)
    ORDER BY run_id, generation DESC
), back AS (
    UPDATE {table} t SET {status} = %(waiting)s FROM refused r
    WHERE r.state = 'QUARANTINED' AND t.{run_id} = r.run_id AND t.{status} = %(failed)s
    RETURNING r.entry_id, r.run_id
), told AS (
    INSERT INTO {ledger}.event (entry_id, kind, detail)
    SELECT entry_id, 'redriven', %(detail)s FROM back
)
SELECT run_id FROM back ORDER BY run_id
"""


def redrive(connection: Connection, settings: Settings, run_ids: Sequence[int], actor: str) -> list[int]:
    """Set refused rows back to WAITING; returns the ids of those that were. Safe to run twice."""
    query = SQL(_REDRIVE).format(
        ledger=quoted(LEDGER_SCHEMA),
        table=quoted(settings.schema, settings.run_table),
        run_id=quoted(settings.column_run_id),
        status=quoted(settings.column_status),
    )
    values = {
        "name": settings.control_table,
        "run_ids": list(run_ids),
        "waiting": settings.status_waiting,
        "failed": settings.status_failed,
        "detail": f"put back to {settings.status_waiting} by {actor}",
    }
    with translated(), connection, connection.cursor(cursor_factory=RealDictCursor) as cursor:
        cursor.execute(query, values)
        return [row["run_id"] for row in cursor.fetchall()]
