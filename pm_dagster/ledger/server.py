"""What the server says of itself: who it is, how the way to it is protected, whether it takes writes."""

from __future__ import annotations

from psycopg2.extensions import connection as Connection  # noqa: N812 the driver's class has a lower-case name

from pm_dagster.config.settings import Settings
from pm_dagster.ledger.connection import DatabaseIsReadOnly, translated
from pm_dagster.ledger.connection_strings import LOOPBACK

_VERIFYING = ("verify-ca", "verify-full")
_TAKES_WRITES = """
SELECT pg_catalog.pg_is_in_recovery(), s.setting = 'on', s.source
FROM pg_catalog.pg_settings s WHERE s.name = 'default_transaction_read_only'
"""
_SOURCE_OF_READ_ONLY = {
    "database": "of this database",
    "user": "of this user",
    "database user": "of this user in this database",
    "client": "of the connection (options, PGOPTIONS or readOnly)",
    "session": "of the session",
}


def server(connection: Connection) -> str:
    """Which server, database and user this is."""
    with translated(), connection.cursor() as cursor:
        cursor.execute("SELECT current_setting('server_version'), current_database(), current_user")
        version, database, user = cursor.fetchone() or ("?", "?", "?")
    return f"PostgreSQL {version}, database {database}, user {user}, {_encryption(connection)}"


def _encryption(connection: Connection) -> str:
    """How the connection is protected on its way."""
    info = connection.info
    if info.ssl_in_use:
        verified = info.dsn_parameters.get("sslmode") in _VERIFYING
        return f"{info.ssl_attribute('protocol')}, the server's certificate {'' if verified else 'not '}verified"
    if info.host.startswith(("/", "@")) or info.host in LOOPBACK or not info.host:
        return "on this machine"
    return "NOT ENCRYPTED on its way here: set PM_POSTGRES_SSLMODE=require, or verify-full"


def liveness(connection: Connection, settings: Settings) -> str:
    """How a dead dispatcher is noticed on this connection, and why so."""
    if settings.liveness != "auto":
        return f"{settings.liveness}, as PM_LIVENESS says"
    with translated(), connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        (pid,) = cursor.fetchone() or (None,)
    if pid == connection.get_backend_pid():
        return "lock: a dead dispatcher is noticed at once"
    return f"lease: behind a pooler a dead dispatcher is noticed after {settings.lease_seconds:g} s"


def why_read_only(connection: Connection) -> str | None:
    """Why the server of this connection takes no writes, None when it does."""
    with translated(), connection.cursor() as cursor:
        cursor.execute(_TAKES_WRITES)
        standby, by_default, source = cursor.fetchone() or (False, False, "")
    if standby:
        return (
            "it is a standby: name the primary, or let the driver look for it with target_session_attrs=read-write"
            " (in a JDBC URL targetServerType=primary)"
        )
    if by_default:
        where = _SOURCE_OF_READ_ONLY.get(source, "of the server")
        return (
            f"default_transaction_read_only is on, a setting {where}; a managed server also"
            " sets it when its storage is full. Make room or RESET it"
        )
    return None


def demand_writable(connection: Connection) -> None:
    """Raise DatabaseIsReadOnly, with the reason, unless the server takes writes."""
    why = why_read_only(connection)
    if why:
        raise DatabaseIsReadOnly(f"the database is read-only; {why}")
