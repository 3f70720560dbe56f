"""Whether an index finds the few rows that wait among the many of the control table, and which one would.

Nothing here creates one: the table is its owner's. Views, foreign tables and partitioned tables are left alone, for no
index can be created on them, or none without a lock.
"""

from __future__ import annotations

from psycopg2 import sql
from psycopg2.extensions import connection as Connection  # noqa: N812 the driver's class has a lower-case name

from pm_dagster.config.settings import Settings
from pm_dagster.ledger.connection import named_cursor, named_rows, translated

#: A table of fewer rows is read as a whole in a few milliseconds.
_ROWS_THAT_MATTER = 10_000
#: An index serves if the status is its first column, or if its condition names the status: as the word for waiting, or
#: as one that is not that of a finished row.
_FOUND = """
SELECT c.reltuples::bigint AS rows, EXISTS (
    SELECT FROM pg_catalog.pg_attribute o WHERE o.attrelid = c.oid AND o.attname = %(order)s AND NOT o.attisdropped
) AS has_order, EXISTS (
    SELECT FROM pg_catalog.pg_index i
    WHERE i.indrelid = c.oid AND i.indisvalid AND (
        i.indkey[0] = a.attnum AND i.indpred IS NULL
        OR strpos(pg_catalog.pg_get_expr(i.indpred, c.oid), pg_catalog.quote_ident(a.attname)) > 0
        AND (strpos(pg_catalog.pg_get_expr(i.indpred, c.oid), pg_catalog.quote_literal(%(waiting)s)) > 0
             OR strpos(pg_catalog.pg_get_expr(i.indpred, c.oid), '<>') > 0))
) AS has_index
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attname = %(status)s AND NOT a.attisdropped
WHERE n.nspname = %(schema)s AND c.relname = %(table)s AND c.relkind = 'r'"""


def proposed_index(connection: Connection, settings: Settings) -> str | None:
    """The statement by which the owner can create the index that is missing; None where none is, or none matters.

    A table that was never analyzed counts as small.
    """
    names = {
        "schema": settings.schema,
        "table": settings.run_table,
        "status": settings.column_status,
        "order": settings.column_order,
        "waiting": settings.status_waiting,
    }
    with translated(), named_cursor(connection) as cursor:
        cursor.execute(_FOUND, names)
        found = named_rows(cursor)
    if not found or found[0].has_index or found[0].rows <= _ROWS_THAT_MATTER:
        return None
    columns = [settings.column_order] if found[0].has_order else []
    columns += [settings.column_run_id]
    return (
        sql.SQL("CREATE INDEX CONCURRENTLY ON {table} ({columns}) WHERE {status} = {waiting}")
        .format(
            table=sql.Identifier(settings.schema, settings.run_table),
            columns=sql.SQL(", ").join(sql.Identifier(name) for name in dict.fromkeys(columns)),
            status=sql.Identifier(settings.column_status),
            waiting=sql.Literal(settings.status_waiting),
        )
        .as_string(connection)
    )
