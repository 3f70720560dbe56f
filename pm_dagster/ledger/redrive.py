"""Puts refused rows back to WAITING, when a person says so: named ones, or a whole class of them.

It is the one write of the control table that belongs to no dispatch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg2.extensions import connection as Connection  # noqa: N812
from psycopg2.extras import RealDictCursor
from psycopg2.sql import SQL, Composed

from pm_dagster.config.settings import Settings
from pm_dagster.ledger.connection import translated
from pm_dagster.ledger.schema import LEDGER_SCHEMA, quoted

#: A statement that takes more would keep many rows locked for long, from their owner and from a dispatch.
BATCH = 1000


@dataclass(frozen=True)
class Which:
    """A class of refused rows; all that is given must hold.

    ``reason`` is a part of the reason in any case, ``since`` (inclusive) and ``before`` are about the time at which the
    row became FAILED. A time without a zone is one of the session's zone, as all times that are shown are.
    """

    reason: str | None = None
    job_id: int | None = None
    since: datetime | None = None
    before: datetime | None = None

    def __str__(self) -> str:
        """For people."""
        parts = (
            self.reason is not None and f"reason with {self.reason!r}",
            self.job_id is not None and f"job {self.job_id}",
            self.since is not None and f"refused since {self.since.isoformat(sep=' ')}",
            self.before is not None and f"refused before {self.before.isoformat(sep=' ')}",
        )
        return ", ".join(part for part in parts if part)


_OF_CLASS = """(%(reason)s::text IS NULL OR position(lower(%(reason)s::text) IN lower(e.reason)) > 0)
    AND (%(job_id)s::bigint IS NULL OR e.job_id = %(job_id)s::bigint)
    AND (%(since)s::timestamptz IS NULL OR e.closed_at >= %(since)s::timestamptz)
    AND (%(before)s::timestamptz IS NULL OR e.closed_at < %(before)s::timestamptz)"""
_NEWEST_REFUSED = """e.control_table = %(name)s AND e.state = 'QUARANTINED' AND NOT e.open AND NOT EXISTS (
        SELECT FROM {ledger}.entry n
        WHERE n.control_table = e.control_table AND n.run_id = e.run_id AND n.generation > e.generation)"""
_REFUSED_ROWS = f"""
SELECT e.entry_id, e.run_id, e.job_id, e.closed_at AS refused_at, e.reason FROM {{ledger}}.entry e
WHERE e.entry_id > %(after)s AND (%(run_ids)s::bigint[] IS NULL OR e.run_id = ANY(%(run_ids)s))
  AND {_NEWEST_REFUSED} AND {_OF_CLASS}
  AND EXISTS (SELECT FROM {{table}} t WHERE t.{{run_id}} = e.run_id AND t.{{status}} = %(failed)s)
ORDER BY e.entry_id LIMIT %(limit)s
"""
# Guarded twice: by the status, so that a row that moved on is not set back, and by the newest
# ledger entry, so that a row that failed by itself stays the owner's business.
_LOCK = """
SELECT t.{run_id} FROM {table} t WHERE t.{run_id} = ANY(%(run_ids)s) AND t.{status} = %(failed)s
ORDER BY t.{run_id} FOR NO KEY UPDATE"""
_LOCK_FREE = f"{_LOCK} SKIP LOCKED"
# A statement of its own, which sees what was committed until the rows were locked: while it waited for a lock, a row
# may have been put back by another, have run and have failed by itself.
_REDRIVE = f"""
WITH refused AS (
    SELECT e.entry_id, e.run_id FROM {{ledger}}.entry e
    WHERE e.run_id = ANY(%(run_ids)s) AND {_NEWEST_REFUSED} AND {_OF_CLASS}
), back AS (
    UPDATE {{table}} t SET {{status}} = %(waiting)s FROM refused r
    WHERE t.{{run_id}} = r.run_id AND t.{{status}} = %(failed)s
    RETURNING r.entry_id, r.run_id
), told AS (
    INSERT INTO {{ledger}}.event (entry_id, kind, detail)
    SELECT DISTINCT entry_id, 'redriven', %(detail)s FROM back
)
SELECT DISTINCT run_id FROM back ORDER BY run_id
"""


def refused_rows(
    connection: Connection,
    settings: Settings,
    which: Which,
    *,
    run_ids: Sequence[int] | None = None,
    after: int = 0,
    limit: int = BATCH,
) -> list[dict[str, Any]]:
    """Rows of a class that would go back now, by the number of their ledger entry, beginning ``after`` one of these.

    Each with ``entry_id``, ``run_id``, ``job_id``, ``refused_at`` and ``reason``; if given, only ``run_ids``. Reads
    only.
    """
    named = None if run_ids is None else list(run_ids)
    values = {**_values(settings, which), "run_ids": named, "after": after, "limit": limit}
    with translated(), connection.cursor(cursor_factory=RealDictCursor) as cursor:
        cursor.execute(_named(_REFUSED_ROWS, settings), values)
        return [dict(row) for row in cursor.fetchall()]


def redrive(
    connection: Connection,
    settings: Settings,
    run_ids: Sequence[int],
    actor: str,
    which: Which | None = None,
    *,
    told: str = "",
) -> list[int]:
    """Set those of these rows that are refused ones back to WAITING, in one transaction; returns their ids.

    With ``which``, only rows of that class, and none that another session holds locked; ``told`` says in the ledger
    which class it was. Safe to run twice, by two at once, and to be killed: what was not committed is still refused.
    """
    asked = f"; asked for: {told}" if told else ""
    detail = f"put back to {settings.status_waiting} by {actor} as {connection.info.user}{asked}"
    values = {**_values(settings, which or Which()), "waiting": settings.status_waiting, "detail": detail}
    lock = _named(_LOCK_FREE if which else _LOCK, settings)
    with translated(), connection, connection.cursor() as cursor:
        cursor.execute(lock, {**values, "run_ids": list(run_ids)})
        locked = [run_id for (run_id,) in cursor.fetchall()]
        cursor.execute(_named(_REDRIVE, settings), {**values, "run_ids": locked})
        return [run_id for (run_id,) in cursor.fetchall()]


def _named(text: str, settings: Settings) -> Composed:
    return SQL(text).format(
        ledger=quoted(LEDGER_SCHEMA),
        table=quoted(settings.schema, settings.run_table),
        run_id=quoted(settings.column_run_id),
        status=quoted(settings.column_status),
    )


def _values(settings: Settings, which: Which) -> dict[str, Any]:
    return {
        "name": settings.control_table,
        "failed": settings.status_failed,
        "reason": which.reason,
        "job_id": which.job_id,
        "since": which.since,
        "before": which.before,
    }
