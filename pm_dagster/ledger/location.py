"""Where the ledger was made, where it is now, and the answers to it having changed places.

How two places compare is decided in ``dispatch.ledger_location``.
"""

from __future__ import annotations

from collections.abc import Callable

import psycopg2
from psycopg2.extensions import connection as Connection  # noqa: N812 the driver's class has a lower-case name
from psycopg2.extensions import cursor as Cursor  # noqa: N812
from psycopg2.extras import RealDictCursor

from pm_dagster.dispatch.ledger_location import Answer, Place, answered_already, difference, normalised_hosts
from pm_dagster.ledger.schema import LEDGER_SCHEMA

_DATABASE = "SELECT pg_catalog.current_database()::text"
#: Each is asked by itself: a server may lack it, and a user the right to it.
_SYSTEM = "SAVEPOINT whereabouts; SELECT system_identifier::text FROM pg_catalog.pg_control_system()"
#: A standby has no position of its own to write at, and is no place to dispatch from.
_TIMELINE = """SAVEPOINT whereabouts;
SELECT CASE WHEN NOT pg_catalog.pg_is_in_recovery()
            THEN left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()), 8) END"""
_MADE = f"""
SELECT made_database, made_hosts, made_system, made_timeline FROM {LEDGER_SCHEMA}.identity
WHERE made_database IS NOT NULL"""
#: Under these the ledger was used where it is recorded to stand; asked only when the answer depends on it.
_KNOWN_HOSTS = f"""
SELECT DISTINCT unnest(d.hosts) FROM {LEDGER_SCHEMA}.dispatcher d, {LEDGER_SCHEMA}.identity i
WHERE d.hosts && %(hosts)s AND d.started_at >= i.made_at"""
_RECORD = f"""
UPDATE {LEDGER_SCHEMA}.identity
SET made_database = %(database)s, made_hosts = %(hosts)s, made_system = %(system)s, made_timeline = %(timeline)s,
    made_at = now()"""
_NEW_IDENTITY = f"UPDATE {LEDGER_SCHEMA}.identity SET environment = gen_random_uuid()"
#: A restored table numbers its row versions anew: what was recorded of them says nothing here.
_FORGET_VERSIONS = f"UPDATE {LEDGER_SCHEMA}.entry SET row_version = NULL WHERE open"
_CLOSE_OPEN = f"""
WITH closed AS (
    UPDATE {LEDGER_SCHEMA}.entry
    SET state = 'WITHDRAWN', open = false, closed_at = now(), updated_at = now(), outcome = 'withdrawn',
        reason = %(why)s
    WHERE open RETURNING entry_id)
INSERT INTO {LEDGER_SCHEMA}.event (entry_id, kind, detail) SELECT entry_id, 'withdrawn', %(why)s FROM closed"""


def place(connection: Connection) -> Place:
    """Where this connection leads to; within its transaction, which stays usable."""
    with connection.cursor() as cursor:
        cursor.execute(_DATABASE)
        (database,) = cursor.fetchone() or ("",)
        system = _if_possible(cursor, lambda: cursor.execute(_SYSTEM))
        timeline = _if_possible(cursor, lambda: cursor.execute(_TIMELINE))
    return Place(database, hosts(connection), system, timeline)


def hosts(connection: Connection) -> tuple[str, ...]:
    """The hosts that the connection was configured with, as they are compared; asks nothing."""
    parameters = connection.get_dsn_parameters()
    return normalised_hosts(parameters.get("host") or parameters.get("hostaddr") or "")


def question(connection: Connection) -> str:
    """What a ledger that stands elsewhere than it was made asks of its operator; empty where it is at home."""
    made = _made(connection)
    if made is None:
        return ""
    now = place(connection)
    why = difference(made, now)
    if not why or not difference(made, now, _known_hosts(connection, now)):
        return ""
    return (
        f"the ledger was made in {made.words} and is now in {now.words}: {why}. Run `pm init --moved`"
        " if the original is no longer used, or `pm init --copy` if it is still used (this one then gets an identity of"
        " its own)"
    )


def record_if_new(connection: Connection) -> None:
    """Record where the ledger stands, unless that was recorded before."""
    if _made(connection) is None:
        _record(connection, place(connection))


def answer(connection: Connection, given: Answer) -> bool:
    """Carry out an answer; False, with nothing changed, when the ledger stands where it is recorded to stand."""
    made, now = _made(connection), place(connection)
    if made is None or answered_already(made, now):
        return False
    with connection.cursor() as cursor:
        if given is Answer.COPY:
            why = f"came along in a copy of {made.words}, where it goes on; here the row is taken anew"
            cursor.execute(_CLOSE_OPEN, {"why": why})
            cursor.execute(_NEW_IDENTITY)
        else:
            cursor.execute(_FORGET_VERSIONS)
    _record(connection, now)
    return True


def _made(connection: Connection) -> Place | None:
    with connection.cursor(cursor_factory=RealDictCursor) as cursor:
        cursor.execute(_MADE)
        row = cursor.fetchone()
    if row is None:
        return None
    return Place(row["made_database"], tuple(row["made_hosts"] or ()), row["made_system"], row["made_timeline"])


def _known_hosts(connection: Connection, now: Place) -> list[str]:
    with connection.cursor() as cursor:
        cursor.execute(_KNOWN_HOSTS, {"hosts": list(now.hosts)})
        return [host for (host,) in cursor.fetchall()]


def _record(connection: Connection, now: Place) -> None:
    values = {"database": now.database, "hosts": list(now.hosts), "system": now.system, "timeline": now.timeline}
    with connection.cursor() as cursor:
        cursor.execute(_RECORD, values)


def _if_possible(cursor: Cursor, ask: Callable[[], None]) -> str | None:
    """The one value of a statement that begins with a savepoint; None where server or rights do not allow it."""
    try:
        ask()
        row = cursor.fetchone()
    except (psycopg2.ProgrammingError, psycopg2.NotSupportedError, psycopg2.InternalError):
        cursor.execute("ROLLBACK TO SAVEPOINT whereabouts")
        return None
    return None if row is None or row[0] is None else str(row[0])
