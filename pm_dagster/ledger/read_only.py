"""A database that takes no writes: why, and what to do about it.

Put here: asking the server. Keep out: who must not go on then (``session``, `pm doctor`).
"""

from __future__ import annotations

from psycopg2.extensions import connection as Connection  # noqa: N812 the driver's class has a lower-case name

from pm_dagster.ledger.connection import DatabaseIsReadOnly, translated

_ASK = """
SELECT pg_catalog.pg_is_in_recovery(), s.setting = 'on', s.source
FROM pg_catalog.pg_settings s WHERE s.name = 'default_transaction_read_only'
"""
_SOURCES = {
    "database": "of this database",
    "user": "of this user",
    "database user": "of this user in this database",
    "client": "of the connection (options, PGOPTIONS or readOnly)",
    "session": "of the session",
}


def why_read_only(connection: Connection) -> str | None:
    """Why the server of this connection takes no writes, None when it does."""
    with translated(), connection.cursor() as cursor:
        cursor.execute(_ASK)
        standby, by_default, source = cursor.fetchone() or (False, False, "")
    if standby:
        return (
            "it is a standby: name the primary, or let the driver look for it with target_session_attrs=read-write"
            " (in a JDBC URL targetServerType=primary)"
        )
    if by_default:
        return (
            f"default_transaction_read_only is on, a setting {_SOURCES.get(source, 'of the server')}; a managed server"
            " also sets it when its storage is full. Make room or RESET it"
        )
    return None


def demand_writable(connection: Connection) -> None:
    """Raise DatabaseIsReadOnly, with the reason, unless the server takes writes."""
    why = why_read_only(connection)
    if why:
        raise DatabaseIsReadOnly(f"the database is read-only; {why}")
