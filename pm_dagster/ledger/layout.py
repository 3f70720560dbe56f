"""What the owner's view and control table look like, checked once per connection.

Put here: reading the catalog and saying clearly what does not fit. Keep out: the rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg2
from psycopg2.extensions import connection as Connection  # noqa: N812

from pm_dagster.config.settings import Settings
from pm_dagster.errors import ConfigurationError
from pm_dagster.ledger.columns import Column, check_written
from pm_dagster.ledger.connection import translated
from pm_dagster.ledger.schema import LEDGER_SCHEMA, LEDGER_VERSION

#: A column's type is followed through its domains to the base type; the innermost modifier is the one that counts.
#: A modifier is a length plus 4 for strings, precision and scale for numeric. A name ends at 63 bytes, "char" at one.
#: pg_column_is_updatable asks for DELETE as well, so of a relation that takes UPDATE alone it says nothing.
#: ``attgenerated`` came with PostgreSQL 12.
_COLUMNS = """
WITH RECURSIVE relation AS (
    SELECT c.oid, c.relkind, pg_catalog.pg_relation_is_updatable(c.oid, true) AS events
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = %s AND c.relname = %s
), level(attnum, type, modifier, required, depth) AS (
    SELECT a.attnum, a.atttypid, a.atttypmod, a.attnotnull, 0
    FROM relation r JOIN pg_catalog.pg_attribute a ON a.attrelid = r.oid AND a.attnum > 0 AND NOT a.attisdropped
    UNION ALL
    SELECT l.attnum, t.typbasetype, CASE WHEN t.typtypmod >= 0 THEN t.typtypmod ELSE l.modifier END,
           l.required OR t.typnotnull, l.depth + 1
    FROM level l JOIN pg_catalog.pg_type t ON t.oid = l.type WHERE t.typtype = 'd'
), base AS (
    SELECT DISTINCT ON (l.attnum) l.* FROM level l ORDER BY l.attnum, l.depth DESC
)
SELECT a.attname, pg_catalog.format_type(a.atttypid, NULL),
       CASE WHEN b.type IN ('varchar'::regtype, 'bpchar'::regtype) AND b.modifier > 4 THEN b.modifier - 4
            WHEN b.type = 'name'::regtype THEN 63 WHEN b.type = '"char"'::regtype THEN 1 END,
       pg_catalog.format_type(b.type, NULL), t.typcategory::text, a.attgenerated <> '' OR a.attidentity = 'a',
       (SELECT array_agg(l.enumlabel::text ORDER BY l.enumsortorder)
        FROM pg_catalog.pg_enum l WHERE l.enumtypid = b.type),
       CASE WHEN b.type = 'numeric'::regtype AND b.modifier > 4 THEN b.modifier - 4 END,
       r.relkind IN ('v', 'f') AND r.events & 16 <> 0
           AND NOT pg_catalog.pg_column_is_updatable(r.oid, a.attnum, true)
           AND NOT EXISTS (SELECT FROM pg_catalog.pg_trigger g
                           WHERE g.tgrelid = r.oid AND g.tgtype & 80 = 80 AND g.tgenabled <> 'D')
           AND NOT EXISTS (SELECT FROM pg_catalog.pg_rewrite w
                           WHERE w.ev_class = r.oid AND w.ev_type = '2' AND w.is_instead AND w.ev_enabled <> 'D'),
       b.required, r.relkind::text, r.events & 4 <> 0
FROM relation r
LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = r.oid AND a.attnum > 0 AND NOT a.attisdropped
LEFT JOIN base b ON b.attnum = a.attnum
LEFT JOIN pg_catalog.pg_type t ON t.oid = b.type
ORDER BY a.attnum
"""
_MAY_NOT = """
SELECT name FROM unnest(%(names)s::text[]) AS name
WHERE NOT pg_catalog.has_column_privilege(format('%%I.%%I', %(schema)s::text, %(table)s::text), name, 'UPDATE')
"""
_RELATIONS = """
SELECT c.relname FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %s AND c.relkind IN ('r', 'p', 'v', 'm', 'f') ORDER BY 1 LIMIT 20
"""
#: Names in settings are taken as they are, as between quotation marks in SQL.
_ALMOST = """
SELECT n.nspname || '.' || c.relname FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE lower(n.nspname || '.' || c.relname) = lower(%s) AND c.relkind IN ('r', 'p', 'v', 'm', 'f') ORDER BY 1 LIMIT 5
"""
#: Partitions can be foreign tables, and another access method than Postgres' own may know no versions.
_ROW_VERSIONS = """
SELECT coalesce(bool_and(p.relkind IN ('r', 'p') AND coalesce(m.amname = 'heap', p.relkind = 'p')), false)
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
CROSS JOIN LATERAL (
    SELECT c.oid AS relid UNION
    SELECT t.relid FROM pg_catalog.pg_partition_tree(c.oid) t WHERE c.relkind = 'p') parts
JOIN pg_catalog.pg_class p ON p.oid = parts.relid
LEFT JOIN pg_catalog.pg_am m ON m.oid = p.relam
WHERE n.nspname = %s AND c.relname = %s
"""
_INTEGERS = frozenset({"smallint", "integer", "bigint", "numeric"})
_KINDS = {"v": "a view", "m": "a materialized view", "f": "a foreign table", "r": "a table", "p": "a table"}
_TIMES = frozenset({"timestamp without time zone", "timestamp with time zone", "date"})


@dataclass(frozen=True)
class Layout:
    """What of the configured names exists where. ``order_is_time`` allows ages to be computed."""

    view: Mapping[str, Column]
    table: Mapping[str, Column]
    order_in_view: bool
    order_is_time: bool
    view_has_status: bool
    #: Whether the table tells the versions of its rows (``xmin``): a view or a foreign table does not.
    has_row_versions: bool = False

    def writable(self, column: str) -> Column | None:
        """The table's column, None where the table has none of this name, or computes it itself."""
        found = self.table.get(column)
        return None if found is None or found.generated or found.fixed else found


def read_layout(connection: Connection, settings: Settings) -> Layout:
    """Read and check both relations.

    Raises ConfigurationError naming the view, table or column that is missing and what was found instead.
    """
    view, _ = _columns(connection, settings.schema, settings.wait_view, "PM_WAIT_VIEW")
    table, takes = _columns(connection, settings.schema, settings.run_table, "PM_RUN_TABLE")
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
    if not takes.update:
        trigger = ", or have its owner give it an INSTEAD OF UPDATE trigger" if takes.kind == "a view" else ""
        raise ConfigurationError(
            f"{settings.control_table} (PM_RUN_TABLE) is {takes.kind} that takes no UPDATE, so no row could be closed;"
            f" name the table under it{trigger}"
        )
    check_written(settings, table)
    _demand_time_zone(connection, settings)
    order = _order(settings, view, table)
    versions = _has_row_versions(connection, settings)
    return Layout(view, table, *order, settings.column_status in view, versions)


def _has_row_versions(connection: Connection, settings: Settings) -> bool:
    with translated(), connection.cursor() as cursor:
        cursor.execute(_ROW_VERSIONS, (settings.schema, settings.run_table))
        return bool((cursor.fetchone() or (False,))[0])


def _demand_time_zone(connection: Connection, settings: Settings) -> None:
    if not settings.time_zone:
        return
    with translated(), connection.cursor() as cursor:
        cursor.execute("SAVEPOINT zone")
        try:
            cursor.execute("SELECT now() AT TIME ZONE %s", (settings.time_zone,))
        except psycopg2.DataError:
            cursor.execute("ROLLBACK TO SAVEPOINT zone")
            message = f"PM_TIME_ZONE={settings.time_zone!r} is no time zone that the database knows (pg_timezone_names)"
            raise ConfigurationError(message) from None


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
    return column in view, found.base in _TIMES


@dataclass(frozen=True)
class _Takes:
    """What kind of relation it is, and whether anything can be written to it at all."""

    kind: str
    update: bool


def _columns(connection: Connection, schema: str, relation: str, variable: str) -> tuple[dict[str, Column], _Takes]:
    with translated(), connection.cursor() as cursor:
        cursor.execute(_COLUMNS, (schema, relation))
        rows = cursor.fetchall()
        if not rows:
            cursor.execute(_RELATIONS, (schema,))
            found = ", ".join(name for (name,) in cursor.fetchall()) or "no tables or views at all"
            message = f"there is no {schema}.{relation} ({variable}); schema {schema} holds: {found}"
            cursor.execute(_ALMOST, (f"{schema}.{relation}",))
            raise ConfigurationError(message + _almost([name for (name,) in cursor.fetchall()]))
    *_, kind, update = rows[0]
    return {row[0]: _column(row) for row in rows if row[0] is not None}, _Takes(_KINDS.get(kind, "a relation"), update)


def _column(row: tuple[Any, ...]) -> Column:
    _, type_, limit, base, category, generated, labels, modifier, fixed, required, *_ = row
    return Column(
        type_, limit, base, category, generated, tuple(labels or ()), _digits(modifier), fixed=fixed, required=required
    )


def _digits(modifier: int | None) -> int | None:
    """What a numeric with this modifier keeps before the decimal point; a negative scale rounds, and keeps nothing."""
    if modifier is None:
        return None
    precision, scale = modifier >> 16 & 0xFFFF, ((modifier & 0x7FF) ^ 0x400) - 0x400
    return precision - scale if scale >= 0 else 0


def _demand(needed: list[str], found: Mapping[str, Column], where: str) -> None:
    missing = sorted({column for column in needed if column not in found})
    if missing:
        message = f"{where} has no column {', '.join(missing)}; it has: {', '.join(found) or 'none'}"
        wanted = {column.casefold() for column in missing}
        raise ConfigurationError(message + _almost([column for column in found if column.casefold() in wanted]))


def _almost(names: Sequence[str]) -> str:
    return f". There is {', '.join(names)}: upper and lower case must be as in the database" if names else ""


def demand_rights(connection: Connection, settings: Settings, layout: Layout) -> None:
    """Raise ConfigurationError for a column that the user may not write, before there is anything to be closed."""
    written = [settings.column_status, settings.column_job_run_id, settings.column_page_url, *settings.columns_message]
    names = [name for name in written if layout.writable(name)]
    with translated(), connection.cursor() as cursor:
        cursor.execute(_MAY_NOT, {"names": names, "schema": settings.schema, "table": settings.run_table})
        missing = [name for (name,) in cursor.fetchall()]
    if missing:
        raise ConfigurationError(
            f"the database user lacks a privilege: UPDATE ({', '.join(missing)}) on {settings.control_table}"
        )


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
