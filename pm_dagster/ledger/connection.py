"""Connections to the database: opening one, watching it, and what the errors of the driver mean.

The driver is psycopg2 because Databricks Runtime 16.4 carries it, and dagster-postgres requires it. Its errors on an
open connection carry a SQLSTATE, which ``translate`` reads. A connection that cannot be opened has none: see the second
half of this module.
"""

from __future__ import annotations

import ctypes
import re
import selectors
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from typing import Any

import psycopg2
from psycopg2 import _psycopg, errorcodes, extensions
from psycopg2.extensions import connection as Connection  # noqa: N812 the driver's class has a lower-case name
from psycopg2.extensions import cursor as Cursor  # noqa: N812
from psycopg2.extras import NamedTupleCursor

from pm_dagster.config.settings import Settings
from pm_dagster.errors import ConfigurationError, ControlPlaneUnavailable, ProcessManagerError
from pm_dagster.ledger.connection_strings import connection_parameters
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
#: Only what reads the owner's view may take another time (``waiting_rows``).
STATEMENT_SECONDS = 60
#: Each transaction begins with this. The planner counts the look-ups of a row's entry as if it made none of them ahead,
#: so that it believes a tick of 10,000 rows worth compiling, which takes longer than the tick.
LOCAL_SETTINGS = (
    f"SET LOCAL lock_timeout = '5s'; SET LOCAL statement_timeout = '{STATEMENT_SECONDS}s'; SET LOCAL jit = off"
)
#: Beyond the server's own time-out: who says nothing for so much longer hangs.
_MORE_SECONDS = 10.0


class DatabaseIsReadOnly(ControlPlaneUnavailable):
    """The database takes no writes: a standby, or told so. May pass by itself, by a failover, on a new connection."""


def connect(settings: Settings) -> Connection:
    """Open a connection; an Entra ID token is fetched for each.

    Raises:
        ConfigurationError: The URL or the credentials cannot be used.
        ControlPlaneUnavailable: The database does not answer.
        Unavailable: Entra ID does not answer.
    """
    always = {
        "connect_timeout": _CONNECT_TIMEOUT_SECONDS,
        "application_name": "process_manager",
        # Else the database's own: what Python's text holds could not even be sent to be refused.
        "client_encoding": "UTF8",
        **_KEEPALIVE,
    }
    arguments = connection_parameters(settings) | always
    try:
        connection: Connection = psycopg2.connect("", **arguments)
    except (psycopg2.Error, UnicodeError) as error:
        # With a code it is one of the first statements, which the driver runs itself.
        if isinstance(error, psycopg2.Error) and error.pgcode:
            raise translate(error) from None
        raise _read_only("", str(error)) or _connect_failure(error, arguments, _CONNECT_TIMEOUT_SECONDS) from None
    with translated():
        for type_ in _LENIENT_TIMES:
            extensions.register_type(type_, connection)
        # Said with each BEGIN, because the locks of a claim and a closing rely on seeing what others just committed,
        # whatever the database's or the role's default is.
        connection.isolation_level = extensions.ISOLATION_LEVEL_READ_COMMITTED
        return connection


def longest_transaction(settings: Settings) -> float:
    """Seconds after which a server that has said nothing hangs: its own time-outs are over by then."""
    return max(STATEMENT_SECONDS, settings.view_timeout_seconds) + _MORE_SECONDS


@contextmanager
def transaction(settings: Settings, *, read_only: bool = True, longest: float | None = None) -> Iterator[Connection]:
    """A connection of its own in one transaction, for whoever is no dispatcher: ``pm status``, ``pm redrive``.

    All that makes it read-only is local to the transaction: a setting of the session would stay behind in the
    connection that a pooler lends to others.

    Args:
        settings: Which database, as whom.
        read_only: Postgres itself refuses every write.
        longest: Seconds after which the connection is shut down; by default as long as reading the view may take.

    Raises:
        ControlPlaneUnavailable: An answer takes too long; otherwise as ``connect``.
    """
    seconds = longest_transaction(settings) if longest is None else longest
    with closing(connect(settings)) as connection, watched(connection, seconds), translated():
        # Not False: that would say READ WRITE, against an owner's default_transaction_read_only.
        connection.readonly = read_only or None
        begin_again(connection)
        yield connection


def begin_again(connection: Connection) -> None:
    """Start a new transaction, after one that may have failed."""
    connection.rollback()
    with connection.cursor() as cursor:
        cursor.execute(LOCAL_SETTINGS)


def named_cursor(connection: Connection) -> Cursor:
    """A cursor whose rows have names; for statements whose columns are named by us, as not every name can be one."""
    return connection.cursor(cursor_factory=NamedTupleCursor)


def named_rows(cursor: Cursor) -> list[Any]:
    """The rows of the last statement of a ``named_cursor``: each has the statement's column names as attributes."""
    return cursor.fetchall()


def watched(connection: Connection, seconds: float) -> AbstractContextManager[None]:
    """Shut the connection down if what is inside takes longer: its driver then raises as for any lost connection.

    For a peer that takes what is sent and never answers, such as a pooler or a server that hangs: the server's own
    time-outs do not reach us through it, and to the kernel the connection is well.
    """
    return shutdown_after(connection.fileno, seconds, psycopg2.Error)


def _lenient_time(base: Callable[..., object]) -> Callable[[Any, Any], object]:
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
    extensions.new_type((1082,), "DATE", _lenient_time(extensions.PYDATE)),
    extensions.new_type((1114,), "TIMESTAMP", _lenient_time(extensions.PYDATETIME)),
    extensions.new_type((1184,), "TIMESTAMPTZ", _lenient_time(extensions.PYDATETIMETZ)),
    extensions.new_type((1083, 1266), "TIME", _lenient_time(extensions.PYTIME)),
    extensions.new_type((1186,), "INTERVAL", _lenient_time(extensions.PYINTERVAL)),
)


#: SQLSTATE classes and codes after which the same transaction may work:
#: https://www.postgresql.org/docs/current/errcodes-appendix.html
_PASSING_CLASSES = ("08", "53", "57", "58")
_TRANSACTION_TIMEOUT = "25P04"  # since PostgreSQL 17; the driver has no name for it
_PASSING_CODES = (errorcodes.IDLE_IN_TRANSACTION_SESSION_TIMEOUT, "08P01", _TRANSACTION_TIMEOUT)
_ANOTHER_TIME = "40"
_WRONG_CREDENTIALS = "28"
#: What libpq says when no host is as target_session_attrs asks; it has no SQLSTATE for it.
_OF_THE_SERVERS_ROLE = ("session is read-only", "session is not read-only", "in hot standby mode")


@contextmanager
def translated() -> Iterator[None]:
    """Turn the driver's errors into ours; the driver's own text holds no password, and only its first line is kept."""
    try:
        yield
    except psycopg2.Error as error:
        raise translate(error) from None


def translate(error: psycopg2.Error) -> ProcessManagerError:
    """The error that an error of the driver means."""
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


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


# Why a connection could not be opened, whatever language and encoding the server speaks.
#
# Of a connection that failed the driver gives only libpq's text. It holds the server's words, in the language of its
# lc_messages and the encoding of its lc_ctype. libpq knows the SQLSTATE and writes it into that text when it is asked
# to be verbose, which a PGconn can be asked between the start and the end of connecting; the driver hands out its
# PGconn only while it connects asynchronously. So after a refusal by the server, and only then, the same connection is
# tried once more in that way, to read the code. libpq's own words (no route, no TLS) have no code: they are in English,
# because Python leaves LC_MESSAGES at "C" until a program asks for more.

_PQERRORS_VERBOSE = 2
#: Refusals that stay until a person changes a setting or the database. Every other one may be gone in seconds.
_REFUSED = (
    errorcodes.INVALID_CATALOG_NAME,
    errorcodes.INVALID_SCHEMA_NAME,
    errorcodes.UNDEFINED_OBJECT,  # an unknown parameter in ``options``
    errorcodes.INVALID_PARAMETER_VALUE,
    errorcodes.CANT_CHANGE_RUNTIME_PARAM,
)
#: PgBouncer has one code for most of what it refuses, and speaks English only.
_POOLERS_CODE = errorcodes.PROTOCOL_VIOLATION
_POOLER_REFUSES = re.compile(rb"no such (database|user)\b|unsupported startup parameter")
_POOLER_DISTRUSTS = re.compile(rb"authentication failed|not allowed")

#: How libpq writes what a server said: severity, colon, two blanks. Verbose, with the SQLSTATE before the words.
_OF_SERVER = b":  "
_CODE = re.compile(rb":  ([0-9A-Z]{5}): ")
#: libpq's own words.
_OWN_CREDENTIALS = ("no password supplied", "authentication method")
_NO_SUCH_USER = "local user with ID"
_OWN_TLS = (
    *("certificate", "does not match host name", "server does not support SSL", "sslmode", "private key file"),
    *("protocol version", "unsupported protocol", "handshake failure", "no shared cipher"),
)
_OWN_SETTINGS = re.compile(r'definition of service ".*" not found|service file ".*" not found|invalid .*(value|number)')
#: As many bytes in a row beyond ASCII are no accented letters of a Western text any more.
_LONG_RUN = re.compile(rb"[\x80-\xff]{3}")


def _connect_failure(error: Exception, arguments: Mapping[str, Any], seconds: float) -> ProcessManagerError:
    """The error that an error of ``psycopg2.connect("", **arguments)`` means.

    Args:
        error: What the driver raised.
        arguments: What it was called with.
        seconds: How long the server may take to say its reason again.
    """
    if isinstance(error, UnicodeDecodeError):
        raw = bytes(error.object)
    elif isinstance(error, UnicodeError):
        return ConfigurationError("a part of PM_POSTGRES_* is not text in UTF-8 (its value is not shown)")
    else:
        raw = str(error).encode(errors="backslashreplace")
    if isinstance(error, psycopg2.ProgrammingError):
        return ConfigurationError("PM_POSTGRES_URL is not a libpq connection URL or string (its value is not shown)")
    if _OF_SERVER not in raw:
        return _libpq_failure(_first_text_line(raw))
    words = _first_text_line(b"; ".join(line.strip() for line in raw.splitlines() if _OF_SERVER in line))
    verbose = _verbose(arguments, seconds)
    codes = [code.decode() for code in _CODE.findall(verbose)]
    kinds = [_kind(code, raw) for code in codes]
    # libpq asks the next host after one that it cannot reach, and none after one that refuses. So one that is away may
    # be the one that would take us.
    several = "," in str(arguments.get("host") or "")
    away = several and not all(_OF_SERVER in line for line in verbose.splitlines() if line.strip())
    if kinds and not away and _PASSING not in kinds:
        return ConfigurationError(f"{kinds[-1]} ({codes[-1]}): {words}")
    return ControlPlaneUnavailable(f"{_PASSING}{f' ({codes[-1]})' if codes else ''}: {words}")


_PASSING = "the database does not answer"
_DISTRUSTED = "the database does not accept our credentials"
_UNPRIVILEGED = "the database user lacks a privilege"
_REFUSES = "the database refuses the connection"


def _kind(code: str, raw: bytes) -> str:
    """What a refusal with this SQLSTATE means; unknown ones are taken for passing."""
    pooler = code == _POOLERS_CODE
    if code.startswith(_WRONG_CREDENTIALS) or (pooler and _POOLER_DISTRUSTS.search(raw)):
        return _DISTRUSTED
    if code == errorcodes.INSUFFICIENT_PRIVILEGE:
        return _UNPRIVILEGED
    if code in _REFUSED or (pooler and _POOLER_REFUSES.search(raw)):
        return _REFUSES
    return _PASSING


def _libpq_failure(words: str) -> ProcessManagerError:
    if words.startswith(_NO_SUCH_USER):
        return ConfigurationError(f"no user of the database is set: set PM_POSTGRES_USER ({words})")
    if any(part in words for part in _OWN_CREDENTIALS):
        return ConfigurationError(f"{_DISTRUSTED}: {words}")
    if any(part in words for part in _OWN_TLS):
        return ConfigurationError(f"no TLS with the database on these terms (sslmode, sslrootcert): {words}")
    if _OWN_SETTINGS.search(words):
        return ConfigurationError(f"{_REFUSES}: {words}")
    return ControlPlaneUnavailable(f"{_PASSING}: {words}")


def _first_text_line(raw: bytes) -> str:
    return next((line.strip() for line in _decoded(raw).splitlines() if line.strip()), "no reason was given")


def _decoded(raw: bytes) -> str:
    """Text of an unknown encoding: UTF-8, else Latin-1 where it looks like it, else what is not ASCII as escapes."""
    with suppress(UnicodeDecodeError):
        return raw.decode()
    return raw.decode("ascii", "backslashreplace") if _LONG_RUN.search(raw) else raw.decode("latin-1")


def _verbose(arguments: Mapping[str, Any], seconds: float) -> bytes:
    """What libpq says, codes included, when the same connection is tried again; nothing when it cannot be had."""
    try:
        # The driver's own libpq, whether it brings one along or was built for the system's.
        libpq = ctypes.CDLL(_psycopg.__file__)
        set_verbosity, message = libpq.PQsetErrorVerbosity, libpq.PQerrorMessage
    except (OSError, AttributeError):
        return b""
    set_verbosity.argtypes, message.argtypes = (ctypes.c_void_p, ctypes.c_int), (ctypes.c_void_p,)
    message.restype = ctypes.c_char_p
    try:
        connection = psycopg2.connect("", **arguments, async_=True)
    except (psycopg2.Error, UnicodeError):
        return b""
    try:
        set_verbosity(connection.pgconn_ptr, _PQERRORS_VERBOSE)
        with suppress(psycopg2.Error, UnicodeError):
            _finish(connection, time.monotonic() + seconds)
        said: bytes = message(connection.pgconn_ptr) or b""
        return said
    finally:
        connection.close()


def _finish(connection: extensions.connection, end: float) -> None:
    """Take the steps of an asynchronous connection until it is open, is refused, or takes too long."""
    events: Sequence[int] = (selectors.EVENT_READ, selectors.EVENT_WRITE)
    while (state := connection.poll()) != extensions.POLL_OK and time.monotonic() < end:
        with selectors.DefaultSelector() as selector:
            selector.register(connection.fileno(), events[state == extensions.POLL_WRITE])
            selector.select(max(0.0, end - time.monotonic()))
