"""What the server says of itself and of our rights, for `pm doctor`.

Put here: questions to the catalog. Keep out: rows, and anything that a dispatch needs.
"""

from __future__ import annotations

from psycopg2.extensions import connection as Connection  # noqa: N812

from pm_dagster.config.settings import Settings
from pm_dagster.ledger.connection import translated
from pm_dagster.ledger.layout import read_layout
from pm_dagster.ledger.parameters import LOOPBACK
from pm_dagster.ledger.schema import LEDGER_SCHEMA, LEDGER_SEQUENCE

_TABLE = "SELECT has_table_privilege(format('%%I.%%I', %s::text, %s::text), %s)"
_COLUMN = "SELECT has_column_privilege(format('%%I.%%I', %s::text, %s::text), %s, 'UPDATE')"
_VERIFYING = ("verify-ca", "verify-full")
_SEQUENCE = "SELECT has_sequence_privilege(%s, 'USAGE')"
#: An operator that is made there for the very types of the owner's columns would be taken for Postgres' own:
#: https://www.postgresql.org/docs/current/ddl-schemas.html#DDL-SCHEMAS-PATTERNS
_OPEN_SCHEMAS = """
SELECT n.nspname FROM pg_catalog.pg_namespace n
WHERE n.nspname = ANY (pg_catalog.current_schemas(false)) AND EXISTS (
    SELECT FROM pg_catalog.aclexplode(n.nspacl) a WHERE a.grantee = 0 AND a.privilege_type = 'CREATE')
"""
_LEDGER_RIGHTS = {
    "alembic_version": ("SELECT",),
    "identity": ("SELECT",),
    "dispatcher": ("SELECT", "INSERT", "UPDATE"),
    "entry": ("SELECT", "INSERT", "UPDATE"),
    "event": ("SELECT", "INSERT"),
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


def open_schemas(connection: Connection) -> list[str]:
    """The schemas of the search path in which everybody may create: what is made there could run with our rights."""
    with translated(), connection.cursor() as cursor:
        cursor.execute(_OPEN_SCHEMAS)
        return [name for (name,) in cursor.fetchall()]


def missing_privileges(connection: Connection, settings: Settings) -> list[str]:
    """The rights that a dispatch needs and this user lacks, in the words of GRANT."""
    written = (settings.column_status, settings.column_job_run_id, settings.column_page_url)
    table = read_layout(connection, settings).table
    columns = [name for name in (*written, *settings.columns_message) if name in table]
    relations = [(settings.schema, settings.wait_view), (settings.schema, settings.run_table)]
    asked = [(*relation, "SELECT") for relation in relations]
    asked += [(LEDGER_SCHEMA, name, right) for name, rights in _LEDGER_RIGHTS.items() for right in rights]
    missing = []
    with translated(), connection.cursor() as cursor:
        for schema, name, right in asked:
            cursor.execute(_TABLE, (schema, name, right))
            if not (cursor.fetchone() or (False,))[0]:
                missing.append(f"{right} on {schema}.{name}")
        for column in columns:
            cursor.execute(_COLUMN, (settings.schema, settings.run_table, column))
            if not (cursor.fetchone() or (False,))[0]:
                missing.append(f"UPDATE ({column}) on {settings.control_table}")
        cursor.execute(_SEQUENCE, (LEDGER_SEQUENCE,))
        if not (cursor.fetchone() or (False,))[0]:
            missing.append(f"USAGE on sequence {LEDGER_SEQUENCE}")
    return missing
