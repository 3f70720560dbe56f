"""Who needs which rights in the database, as statements that its owner can run.

Put here: the list, with the reason for each right. Keep out: running it, and telling what is missing (``catalog.py``).
A test takes each right away and sees something break, so nothing here is too much.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

from psycopg2.extensions import connection as Connection  # noqa: N812
from psycopg2.extensions import quote_ident

from pm_dagster.config.settings import Settings
from pm_dagster.ledger import catalog
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
        ("UPDATE", "dispatcher", "number writes, renew the lease, leave, bury the dead"),
        (_READ, "entry", "what was intended, sent and learned"),
        ("INSERT", "entry", "claim"),
        ("UPDATE", "entry", "intend, record, close"),
        (_READ, "event", "explain"),
        ("INSERT", "event", "history; never changed, never deleted"),
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


_TRAITS = """
SELECT (SELECT c.reloptions @> ARRAY['security_invoker=true'] OR c.reloptions @> ARRAY['security_invoker=on']
        FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = %(schema)s AND c.relname = %(view)s),
       (SELECT c.relrowsecurity
        FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = %(schema)s AND c.relname = %(table)s)
"""


_OPEN = (
    "Everybody may create in schema {name}, and what they create could run with the role's rights:"
    " REVOKE CREATE ON SCHEMA {name} FROM PUBLIC;"
)


def _warnings(connection: Connection, settings: Settings) -> list[str]:
    """What these statements cannot do by themselves."""
    names = {"schema": settings.schema, "view": settings.wait_view, "table": settings.run_table}
    with connection.cursor() as cursor:
        cursor.execute(_TRAITS, names)
        invoker, row_security = cursor.fetchone() or (False, False)
    open_schemas = [quote_ident(name, connection) for name in catalog.open_schemas(connection) if "\n" not in name]
    found = [f"-- {_OPEN.format(name=name)}" for name in open_schemas]
    if invoker:
        found.append("-- The view reads with the caller's rights: grant SELECT on what it reads, too.")
    if row_security:
        found.append("-- The table has row-level security: its policies must let the role see every row.")
    return found
