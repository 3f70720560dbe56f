"""What the owner's view and control table look like, checked once per connection.

Put here: reading the catalog and saying clearly what does not fit. Keep out: the rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from psycopg2.extensions import connection as Connection  # noqa: N812

from pm_dagster.core.errors import ConfigurationError
from pm_dagster.core.settings import Settings
from pm_dagster.postgres.columns import Column, check_written
from pm_dagster.postgres.connection import translated
from pm_dagster.postgres.schema import LEDGER_SCHEMA, LEDGER_VERSION

# ``attgenerated`` came with PostgreSQL 12.
_COLUMNS = """
SELECT a.attname, format_type(a.atttypid, NULL),
       CASE WHEN a.atttypid IN ('varchar'::regtype, 'bpchar'::regtype) AND a.atttypmod > 4 THEN a.atttypmod - 4 END,
       format_type(coalesce(nullif(t.typbasetype, 0), t.oid), NULL), t.typcategory::text, a.attgenerated <> '',
       (SELECT array_agg(l.enumlabel::text) FROM pg_catalog.pg_enum l WHERE l.enumtypid = t.oid)
FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
LEFT JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
WHERE n.nspname = %s AND c.relname = %s
ORDER BY a.attnum
"""
_RELATIONS = """
SELECT c.relname FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %s AND c.relkind IN ('r', 'p', 'v', 'm', 'f') ORDER BY 1 LIMIT 20
"""
_INTEGERS = frozenset({"smallint", "integer", "bigint", "numeric"})
_TIMES = frozenset({"timestamp without time zone", "timestamp with time zone", "date"})


@dataclass(frozen=True)
class Layout:
    """What of the configured names exists where. ``order_is_time`` allows ages to be computed."""

    view: Mapping[str, Column]
    table: Mapping[str, Column]
    order_in_view: bool
    order_is_time: bool
    view_has_status: bool

    def writable(self, column: str) -> Column | None:
        """The table's column, None where the table has none of this name, or computes it itself."""
        found = self.table.get(column)
        return None if found is None or found.generated else found


def read_layout(connection: Connection, settings: Settings) -> Layout:
    """Read and check both relations.

    Raises ConfigurationError naming the view, table or column that is missing and what was found instead.
    """
    view = _columns(connection, settings.schema, settings.wait_view, "PM_WAIT_VIEW")
    table = _columns(connection, settings.schema, settings.run_table, "PM_RUN_TABLE")
    needed = [settings.column_run_id, settings.column_job_id, settings.column_job_run_id]
    needed += [column for _, column in settings.job_parameters]
    _demand(needed, view, f"view {settings.schema}.{settings.wait_view}")
    _demand([settings.column_run_id, settings.column_status], table, f"table {settings.control_table}")
    for where, column in (("view", view), ("table", table)):
        if column[settings.column_run_id].base not in _INTEGERS:
            name = settings.wait_view if where == "view" else settings.run_table
            message = (
                f"column {settings.column_run_id} of {where} {settings.schema}.{name} is"
                f" {column[settings.column_run_id].type}; it must be an integer type"
            )
            raise ConfigurationError(message)
    check_written(settings, table)
    return Layout(view, table, *_order(settings, view, table), view_has_status=settings.column_status in view)


def _order(settings: Settings, view: Mapping[str, Column], table: Mapping[str, Column]) -> tuple[bool, bool]:
    column = settings.column_order
    if not column:
        return False, False
    if column not in view and column not in table:
        message = (
            f"column {column} (PM_COLUMN_ORDER) is neither in view {settings.schema}.{settings.wait_view} nor in table"
            f" {settings.control_table}; set it to a column that one of them has, or to nothing to go by run id"
        )
        raise ConfigurationError(message)
    found = view.get(column) or table[column]
    return column in view, found.type in _TIMES


def _columns(connection: Connection, schema: str, relation: str, variable: str) -> dict[str, Column]:
    with translated(), connection.cursor() as cursor:
        cursor.execute(_COLUMNS, (schema, relation))
        rows = cursor.fetchall()
        if not rows:
            cursor.execute(_RELATIONS, (schema,))
            found = ", ".join(name for (name,) in cursor.fetchall()) or "no tables or views at all"
            message = f"there is no {schema}.{relation} ({variable}); schema {schema} holds: {found}"
            raise ConfigurationError(message)
    return {
        name: Column(type_, limit, base, category, generated, tuple(labels or ()))
        for name, type_, limit, base, category, generated, labels in rows
        if name is not None
    }


def _demand(needed: list[str], found: Mapping[str, Column], where: str) -> None:
    missing = sorted({column for column in needed if column not in found})
    if missing:
        message = f"{where} has no column {', '.join(missing)}; it has: {', '.join(found) or 'none'}"
        raise ConfigurationError(message)


def check_ledger(connection: Connection) -> None:
    """Raise ConfigurationError unless the ledger exists at the version this code was written for."""
    found = ledger_version(connection)
    if found is None:
        message = f"the ledger (schema {LEDGER_SCHEMA}) does not exist in this database: run `pm init` once"
        raise ConfigurationError(message)
    if found != LEDGER_VERSION:
        message = f"the ledger is at version {found}, this program needs {LEDGER_VERSION}: run `pm init`"
        raise ConfigurationError(message)


def ledger_version(connection: Connection) -> str | None:
    """The ledger's version, None when there is no ledger."""
    with translated(), connection.cursor() as cursor:
        cursor.execute("SELECT to_regclass(%s)", (f"{LEDGER_SCHEMA}.alembic_version",))
        row = cursor.fetchone()
        if row is None or row[0] is None:
            return None
        cursor.execute(f"SELECT version_num FROM {LEDGER_SCHEMA}.alembic_version")
        version = cursor.fetchone()
    return None if version is None else str(version[0])
