"""The waiting jobs for a client other than the driver: every value crosses as text, and the driver reads the text.

Put here: the read as one statement without parameters, and values from its rows. Keep out: who runs it.

Other clients map types in their own way: Spark 3.5 cannot take some types of Postgres, shifts times by its own zone and
cuts a numeric without scale at 18 places (``PostgresDialect``, ``JdbcUtils``). What the server writes as text is what
the driver gets on its own connection, so the same functions of the driver make the same values of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from psycopg2 import extensions, sql
from psycopg2.extensions import cursor as Cursor  # noqa: N812 the driver's class has a lower-case name

from pm_dagster.config.settings import Settings
from pm_dagster.dispatch.waiting_job import RawRow
from pm_dagster.ledger.session import Session
from pm_dagster.ledger.view_reading import reading_view
from pm_dagster.ledger.waiting_rows import raw_row

#: What decides how the server writes values, and the limits of a statement:
#: https://www.postgresql.org/docs/current/runtime-config-client.html
_SETTINGS = (
    "DateStyle",
    "IntervalStyle",
    "TimeZone",
    "bytea_output",
    "extra_float_digits",
    "lc_monetary",
    "lock_timeout",
    "statement_timeout",
    "xmlbinary",
)
_SESSION = """
SELECT 'SELECT ' || string_agg(format('set_config(%%L, %%L, false)', name, value), ', ')
FROM (SELECT name, current_setting(name) FROM unnest(%(names)s) AS name
      UNION ALL VALUES ('default_transaction_read_only', 'on')) AS settings(name, value)"""
# ``format`` calls the type's output function; a cast to text does not for every type. ``IS DISTINCT FROM NULL`` is no
# comparison, which some types lack, and holds for a composite value whose fields are null.
_VALUE = sql.SQL("CASE WHEN {0} IS DISTINCT FROM NULL THEN format('%%s', {0}) END AS {0}")


@dataclass(frozen=True)
class TextRead:
    """``query`` gives, in no order, a row's place among the oldest and then its values as text.

    ``session`` must have run in the same session before: it makes the server write values as ours gets them.
    ``types`` are the values' types.
    """

    query: str
    session: str
    types: tuple[int, ...]


class WaitingAsText:
    """Reads for ``settings``; connects when first used and registers no dispatcher. Not thread-safe."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._session = Session(settings, actor="")

    def read(self, limit: int) -> TextRead:
        """The read of ``ControlPlane.waiting``. Raises what that raises."""

        def work(cursor: Cursor) -> TextRead:
            waiting = self._session.statements.waiting
            cursor.execute(waiting, {**self._session.names, "limit": 0})
            types = tuple(column.type_code for column in cursor.description or ())
            query = cursor.mogrify(_as_text(waiting, len(types)), {**self._session.names, "limit": limit})
            with reading_view(cursor, self._settings):
                cursor.execute(_SESSION, {"names": list(_SETTINGS)})
                (session,) = cursor.fetchone() or ("",)
            return TextRead(query.decode(_codec(cursor)), session, types)

        return self._session.read(work)

    def rows(self, read: TextRead, found: Iterable[Sequence[object]]) -> list[RawRow]:
        """The rows of the query, oldest first, as ``ControlPlane.waiting`` gives them."""
        texts = [[None if text is None else str(text) for text in row[1:]] for row in sorted(found, key=_place)]

        def work(cursor: Cursor) -> list[RawRow]:
            readers = [_reader(cursor, type_) for type_ in read.types]
            return [
                raw_row([reader(text) for reader, text in zip(readers, row, strict=True)], self._settings)
                for row in texts
            ]

        return self._session.read(work)

    def end(self) -> None:
        """Close the connection."""
        self._session.end()


def _as_text(waiting: sql.Composable, width: int) -> sql.Composed:
    """The statement wrapped; a client that wraps it again may lose its order, so the place becomes a column."""
    names = [sql.SQL(f"c{number}") for number in range(width)]
    return sql.SQL(
        "SELECT row_number() OVER (ORDER BY c2 NULLS LAST, c0) AS place, {values} FROM ({waiting}) AS waiting"
    ).format(values=sql.SQL(", ").join(_VALUE.format(name) for name in names), waiting=waiting)


def _place(row: Sequence[object]) -> int:
    return int(str(row[0]))


def _codec(cursor: Cursor) -> str:
    return extensions.encodings[cursor.connection.encoding]


def _reader(cursor: Cursor, type_: int) -> Callable[[str | None], object]:
    """What the driver does with a value of this type; it takes bytes, as they came over the wire."""
    known = {**extensions.string_types, **cursor.connection.string_types}
    cast = known.get(type_, extensions.UNICODE)
    codec = _codec(cursor)
    return lambda text: None if text is None else cast(text.encode(codec), cursor)
