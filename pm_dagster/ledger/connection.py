"""Connections to the database, and the translation of the driver's errors into ours.

Put here: how to connect, for how long to wait, and what an error means. Keep out: statements.
The driver is psycopg2 because Databricks Runtime 16.4 carries it, and dagster-postgres requires it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import psycopg2
from psycopg2 import errorcodes, extensions
from psycopg2.extensions import connection as Connection  # noqa: N812 the driver's class has a lower-case name

from pm_dagster.config.settings import Settings
from pm_dagster.errors import ConfigurationError, ControlPlaneUnavailable, ProcessManagerError
from pm_dagster.ledger.connect_failure import connect_failure
from pm_dagster.ledger.parameters import parameters
from pm_dagster.net.watchdog import shutdown_after

_CONNECT_TIMEOUT_SECONDS = 10
#: A peer that vanished without a word is noticed after about 30 s: by keepalives while nothing is under way, by the
#: time-out while something is sent, for which the kernel alone would take a quarter of an hour (tcp(7), tcp_retries2).
_KEEPALIVE: dict[str, Any] = {
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 4,
    "tcp_user_timeout": 30_000,
}

#: SQLSTATE classes and codes after which the same transaction may work:
#: https://www.postgresql.org/docs/current/errcodes-appendix.html
_PASSING_CLASSES = ("08", "53", "57", "58")
_TRANSACTION_TIMEOUT = "25P04"  # since PostgreSQL 17; the driver has no name for it
_PASSING_CODES = (errorcodes.IDLE_IN_TRANSACTION_SESSION_TIMEOUT, "08P01", _TRANSACTION_TIMEOUT)
_ANOTHER_TIME = "40"
_WRONG_CREDENTIALS = "28"


#: What libpq says when no host is as target_session_attrs asks; it has no SQLSTATE for it.
_OF_THE_SERVERS_ROLE = ("session is read-only", "session is not read-only", "in hot standby mode")


class DatabaseIsReadOnly(ControlPlaneUnavailable):
    """The database takes no writes: a standby, or told so. May pass by itself, by a failover, on a new connection."""


def connect(settings: Settings) -> Connection:
    """Open a connection; an Entra ID token is fetched for each.

    Raises ConfigurationError for an unusable URL or credentials, ControlPlaneUnavailable when the database does not
    answer, Unavailable when Entra ID does not.
    """
    always = {
        "connect_timeout": _CONNECT_TIMEOUT_SECONDS,
        "application_name": "process_manager",
        # Else the database's own: what Python's text holds could not even be sent to be refused.
        "client_encoding": "UTF8",
        **_KEEPALIVE,
    }
    arguments = parameters(settings) | always
    try:
        connection: Connection = psycopg2.connect("", **arguments)
    except (psycopg2.Error, UnicodeError) as error:
        # With a code it is one of the first statements, which the driver runs itself.
        if isinstance(error, psycopg2.Error) and error.pgcode:
            raise in_our_words(error) from None
        raise _read_only("", str(error)) or connect_failure(error, arguments, _CONNECT_TIMEOUT_SECONDS) from None
    with translated():
        for type_ in _LENIENT_TIMES:
            extensions.register_type(type_, connection)
        # Said with each BEGIN, because the locks of a claim and a closing rely on seeing what others just committed,
        # whatever the database's or the role's default is.
        connection.isolation_level = extensions.ISOLATION_LEVEL_READ_COMMITTED
        return connection


def time_limit(connection: Connection, seconds: float) -> AbstractContextManager[None]:
    """Break the connection if what is inside takes longer: its driver then raises as for any lost connection.

    For a peer that takes what is sent and never answers, such as a pooler or a server that hangs: the server's own
    time-outs do not reach us through it, and to the kernel the connection is well.
    """
    return shutdown_after(connection.fileno, seconds, psycopg2.Error)


def _lenient(base: Callable[..., object]) -> Callable[[Any, Any], object]:
    """A time that Python cannot hold, such as one before Christ, stays text: it must not stop the other rows.

    So does infinity, for which the driver gives the last day that Python has.
    """

    def cast(value: Any, cursor: Any) -> object:  # noqa: ANN401 the driver's own signature
        if value in _INFINITE:
            return value
        try:
            return base(value, cursor)
        except (ValueError, OverflowError):
            return value

    return cast


_INFINITE = ("infinity", "-infinity")
_LENIENT_TIMES = (
    extensions.new_type((1082,), "DATE", _lenient(extensions.PYDATE)),
    extensions.new_type((1114,), "TIMESTAMP", _lenient(extensions.PYDATETIME)),
    extensions.new_type((1184,), "TIMESTAMPTZ", _lenient(extensions.PYDATETIMETZ)),
    extensions.new_type((1083, 1266), "TIME", _lenient(extensions.PYTIME)),
    extensions.new_type((1186,), "INTERVAL", _lenient(extensions.PYINTERVAL)),
)


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


@contextmanager
def translated() -> Iterator[None]:
    """Turn the driver's errors into ours; the driver's own text holds no password, and only its first line is kept."""
    try:
        yield
    except psycopg2.Error as error:
        raise in_our_words(error) from None


def _first_of(error: psycopg2.Error) -> psycopg2.Error:
    """What went wrong first: the rollback on a connection that is lost only says that it is closed."""
    while isinstance(error.__context__, psycopg2.Error):
        error = error.__context__
    return error


def _read_only(code: str, what: str) -> DatabaseIsReadOnly | None:
    """The error for a server that takes no writes, or whose hosts are none that was asked for."""
    if code == errorcodes.READ_ONLY_SQL_TRANSACTION:
        return DatabaseIsReadOnly(
            f"the database is read-only (a standby, or default_transaction_read_only; see `pm doctor`): {what}"
        )
    if not code and any(words in what for words in _OF_THE_SERVERS_ROLE):
        first = what.strip().splitlines()[0]
        return DatabaseIsReadOnly(f"no database server is as target_session_attrs (targetServerType) asks: {first}")
    return None


def in_our_words(error: psycopg2.Error) -> ProcessManagerError:
    """The error of ours that an error of the driver means."""
    first = _first_of(error)
    code = first.pgcode or ""
    what = _first_line(first)
    read_only = _read_only(code, what)
    if read_only is not None:
        return read_only
    if first is not error:
        return ControlPlaneUnavailable(f"the database does not answer: {what}")
    if code.startswith(_WRONG_CREDENTIALS):
        return ConfigurationError(f"the database does not accept our credentials: {what}")
    if code == errorcodes.LOCK_NOT_AVAILABLE:
        return ControlPlaneUnavailable(f"another session holds a lock that we need (see pg_locks): {what}")
    if code == errorcodes.QUERY_CANCELED:
        return ControlPlaneUnavailable(
            f"a statement was cancelled: by its time-out, or by somebody (pg_cancel_backend): {what}"
        )
    if code.startswith(_ANOTHER_TIME):
        return ControlPlaneUnavailable(f"the database asks for the transaction once more: {what}")
    if not code or code.startswith(_PASSING_CLASSES) or code in _PASSING_CODES:
        return ControlPlaneUnavailable(f"the database does not answer: {what}")
    if code == errorcodes.INSUFFICIENT_PRIVILEGE:
        return ConfigurationError(f"the database user lacks a privilege: {what}")
    return ConfigurationError(f"the database refused a statement ({code}): {what}")
