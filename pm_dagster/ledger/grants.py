"""Who needs which rights in the database: as statements that the owner can run, and what of it a user lacks.

A test takes each right away and sees something break, so nothing here is too much.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

from psycopg2.extensions import connection as Connection  # noqa: N812 the driver's class has a lower-case name
from psycopg2.extensions import cursor as Cursor  # noqa: N812
from psycopg2.extensions import quote_ident

from pm_dagster.config.settings import Settings
from pm_dagster.errors import ConfigurationError
from pm_dagster.ledger.connection import translated
from pm_dagster.ledger.layout import Layout, read_layout
from pm_dagster.ledger.schema import LEDGER_SCHEMA, LEDGER_SEQUENCE

_READ = "SELECT"


class Part(Enum):
    """What a role is for."""

    DISPATCHER = "dispatcher"
    READER = "reader"
    MIGRATOR = "migrator"


@dataclass(frozen=True)
class Right:
    """One privilege on one thing, both in the words of GRANT, and what it is for."""

    privilege: str
    on: str
    why: str


_LEDGER: dict[Part, Sequence[tuple[str, str, str]]] = {
    Part.DISPATCHER: (
        (_READ, "alembic_version", "is the ledger at our version?"),
        (_READ, "identity", "the environment in idempotency tokens"),
        (_READ, "dispatcher", "who lives?"),
        ("INSERT", "dispatcher", "register"),
        ("UPDATE", "dispatcher", "number writes, renew the lease, leave, mark dead ones"),
        (_READ, "entry", "what was intended, sent and learned"),
        ("INSERT", "entry", "claim"),
        ("UPDATE", "entry", "intend, record, close"),
        (_READ, "event", "explain"),
        ("INSERT", "event", "history; never changed, never deleted"),
        (_READ, "api_budget", "one budget for all dispatchers of a workspace"),
        ("INSERT", "api_budget", "the first dispatcher of a workspace"),
        ("UPDATE", "api_budget", "reserve calls, tell others of a 429"),
    ),
    Part.READER: tuple(
        (_READ, name, why)
        for name, why in (
            ("alembic_version", "is the ledger at our version?"),
            ("identity", "read on connecting"),
            ("dispatcher", "status, explain: who dispatches"),
            ("entry", "status, plan, explain"),
            ("event", "explain"),
        )
    ),
}
_HEADS = {
    Part.DISPATCHER: "Dispatches, and runs every other command but `pm init`",
    Part.READER: "Runs `pm status`, `pm plan` and `pm explain`",
    Part.MIGRATOR: "Runs `pm init`; owns the ledger and nothing else",
}
_TRAITS = """
SELECT (SELECT c.reloptions @> ARRAY['security_invoker=true'] OR c.reloptions @> ARRAY['security_invoker=on']
        FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = %(schema)s AND c.relname = %(view)s),
       (SELECT c.relrowsecurity
        FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = %(schema)s AND c.relname = %(table)s)
"""
#: An operator that is made there for the very types of the owner's columns would be taken for Postgres' own:
#: https://www.postgresql.org/docs/current/ddl-schemas.html#DDL-SCHEMAS-PATTERNS
_OPEN_SCHEMAS = """
SELECT n.nspname FROM pg_catalog.pg_namespace n
WHERE n.nspname = ANY (pg_catalog.current_schemas(false)) AND EXISTS (
    SELECT FROM pg_catalog.aclexplode(n.nspacl) a WHERE a.grantee = 0 AND a.privilege_type = 'CREATE')
"""
_OPEN_TO_ALL = (
    "Everybody may create in schema {name}, and what they create could run with the role's rights:"
    " REVOKE CREATE ON SCHEMA {name} FROM PUBLIC;"
)
_HAS_RIGHT = "SELECT has_table_privilege(format('%%I.%%I', %s::text, %s::text), %s)"
_WITHOUT_UPDATE = """
SELECT name FROM unnest(%(names)s::text[]) AS name
WHERE NOT pg_catalog.has_column_privilege(format('%%I.%%I', %(schema)s::text, %(table)s::text), name, 'UPDATE')
"""
_HAS_SEQUENCE = "SELECT has_sequence_privilege(%s, 'USAGE')"


def script(connection: Connection, settings: Settings, part: Part, role: str) -> str:
    """The statements for a role, as the owner of table and ledger runs them, in one transaction.

    Reads the catalog only. Raises ConfigurationError for a view or table that is not there.
    """
    to = quote_ident(role, connection)
    head = [f"-- {_HEADS[part]}. The role has to be there: CREATE ROLE ... LOGIN."]
    if part is Part.MIGRATOR:
        body = [f"CREATE SCHEMA IF NOT EXISTS {quote_ident(LEDGER_SCHEMA, connection)} AUTHORIZATION {to};"]
        return "\n".join([*head, "-- Comes before `pm init`.", *body, ""])
    head.append("-- Comes after `pm init`, and again after an upgrade. Run it as the owner of table and ledger.")
    found = rights(connection, settings, part)
    lines = [f"GRANT {right.privilege} ON {right.on} TO {to};  -- {right.why}" for right in found]
    return "\n".join([*head, *_warnings(connection, settings), "BEGIN;", *lines, "COMMIT;", ""])


def rights(connection: Connection, settings: Settings, part: Part) -> list[Right]:
    """All that a dispatcher or reader needs, beside CONNECT, which everybody has unless it was revoked."""

    def named(kind: str, *names: str) -> str:
        return f"{kind} {'.'.join(quote_ident(name, connection) for name in names)}"

    layout = read_layout(connection, settings)
    table = named("TABLE", settings.schema, settings.run_table)
    found = [
        Right("USAGE", named("SCHEMA", settings.schema), "the view and the control table"),
        Right(_READ, named("TABLE", settings.schema, settings.wait_view), "the waiting jobs"),
        Right(_READ, table, "status and age of a row; explain shows all of it"),
    ]
    if part is Part.DISPATCHER:
        written = _written(settings, layout)
        found += [Right(f"UPDATE ({quote_ident(name, connection)})", table, why) for name, why in written]
    found.append(Right("USAGE", named("SCHEMA", LEDGER_SCHEMA), "the ledger"))
    found += [Right(right, named("TABLE", LEDGER_SCHEMA, name), why) for right, name, why in _LEDGER[part]]
    if part is Part.DISPATCHER:
        found.append(Right("USAGE", named("SEQUENCE", *LEDGER_SEQUENCE.split(".")), "a number for each dispatcher"))
    return found


def _written(settings: Settings, layout: Layout) -> Iterable[tuple[str, str]]:
    """The columns of the control table that we write, each once."""
    purposes = {
        settings.column_status: "the row's status",
        settings.column_job_run_id: "the Databricks run",
        settings.column_page_url: "the link to it",
        **dict.fromkeys(settings.columns_message, "the reason"),
    }
    return [(name, why) for name, why in purposes.items() if layout.writable(name)]


def _warnings(connection: Connection, settings: Settings) -> list[str]:
    """What these statements cannot do by themselves."""
    names = {"schema": settings.schema, "view": settings.wait_view, "table": settings.run_table}
    with connection.cursor() as cursor:
        cursor.execute(_TRAITS, names)
        invoker, row_security = cursor.fetchone() or (False, False)
    to_all = [quote_ident(name, connection) for name in open_schemas(connection) if "\n" not in name]
    found = [f"-- {_OPEN_TO_ALL.format(name=name)}" for name in to_all]
    if invoker:
        found.append("-- The view reads with the caller's rights: grant SELECT on what it reads, too.")
    if row_security:
        found.append("-- The table has row-level security: its policies must let the role see every row.")
    return found


def open_schemas(connection: Connection) -> list[str]:
    """The schemas of the search path in which everybody may create: what is made there could run with our rights."""
    with translated(), connection.cursor() as cursor:
        cursor.execute(_OPEN_SCHEMAS)
        return [name for (name,) in cursor.fetchall()]


def missing_privileges(connection: Connection, settings: Settings) -> list[str]:
    """The rights that a dispatch needs and this user lacks, in the words of GRANT."""
    asked = [(settings.schema, name, _READ) for name in (settings.wait_view, settings.run_table)]
    asked += [(LEDGER_SCHEMA, name, right) for right, name, _ in _LEDGER[Part.DISPATCHER]]
    layout = read_layout(connection, settings)
    missing = []
    with translated(), connection.cursor() as cursor:
        for schema, name, right in asked:
            cursor.execute(_HAS_RIGHT, (schema, name, right))
            if not (cursor.fetchone() or (False,))[0]:
                missing.append(f"{right} on {schema}.{name}")
        columns = _columns_without_update(cursor, settings, layout)
        missing += [f"UPDATE ({name}) on {settings.control_table}" for name in columns]
        cursor.execute(_HAS_SEQUENCE, (LEDGER_SEQUENCE,))
        if not (cursor.fetchone() or (False,))[0]:
            missing.append(f"USAGE on sequence {LEDGER_SEQUENCE}")
    return missing


def demand_rights(connection: Connection, settings: Settings, layout: Layout) -> None:
    """Raise ConfigurationError for a column that the user may not write, before there is anything to be closed."""
    with translated(), connection.cursor() as cursor:
        missing = _columns_without_update(cursor, settings, layout)
    if missing:
        raise ConfigurationError(
            f"the database user lacks a privilege: UPDATE ({', '.join(missing)}) on {settings.control_table}"
        )


def _columns_without_update(cursor: Cursor, settings: Settings, layout: Layout) -> list[str]:
    names = [name for name, _ in _written(settings, layout)]
    cursor.execute(_WITHOUT_UPDATE, {"names": names, "schema": settings.schema, "table": settings.run_table})
    return [name for (name,) in cursor.fetchall()]
