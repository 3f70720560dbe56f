"""A connection for what is nobody's dispatch: the questions of people, and `pm redrive`.

Put here: opening it, and that it never waits without end. Keep out: what is asked (``reads``, ``server``, ``grants``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager

from psycopg2.extensions import connection as Connection  # noqa: N812

from pm_dagster.config.settings import Settings
from pm_dagster.ledger.connection import connect, time_limit, translated
from pm_dagster.ledger.ledger_sql import LOCAL_TIMEOUTS, longest_transaction


@contextmanager
def asking(settings: Settings, *, read_only: bool = True, longest: float | None = None) -> Iterator[Connection]:
    """A connection in a transaction, in which Postgres itself refuses every write if ``read_only``.

    All that makes it so is local to the transaction: a setting of the session would stay behind in the connection that
    a pooler lends to others. Raises as ``connect``, ControlPlaneUnavailable when an answer is too long in coming.
    """
    seconds = longest_transaction(settings) if longest is None else longest
    with closing(connect(settings)) as connection, time_limit(connection, seconds), translated():
        # Not False: that would say READ WRITE, against an owner's default_transaction_read_only.
        connection.readonly = read_only or None
        begin(connection)
        yield connection


def begin(connection: Connection) -> None:
    """Start a new transaction, after one that may have failed."""
    connection.rollback()
    with connection.cursor() as cursor:
        cursor.execute(LOCAL_TIMEOUTS)
