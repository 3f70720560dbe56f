"""What it means that no connection could be opened, whatever language and encoding the server speaks.

Put here: reading the SQLSTATE of a refused connection, and what each means. Keep out: errors on an open connection
(``connection``), which carry their SQLSTATE.

The driver gives the SQLSTATE of a statement that failed, but of a connection that failed only the text of libpq, which
holds the server's words: in the language of its ``lc_messages``, in the encoding of its ``lc_ctype``. libpq itself
knows the code and writes it into that text when asked to be verbose, which a PGconn can be asked between the start of
a connection and its end; the driver lets us at its PGconn only while it connects asynchronously. So, after a refusal by
the server, and only then, the same connection is tried once more in that way, to read the code. libpq's own words
(no route, no TLS) have no code: they are in English, as Python leaves LC_MESSAGES at "C" until a program asks for more.
"""

from __future__ import annotations

import ctypes
import re
import selectors
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import psycopg2
from psycopg2 import _psycopg, errorcodes, extensions

from pm_dagster.errors import ConfigurationError, ControlPlaneUnavailable, ProcessManagerError

_PQERRORS_VERBOSE = 2
_WRONG_CREDENTIALS = "28"
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
_NOBODY = "local user with ID"
_OWN_TLS = (
    *("certificate", "does not match host name", "server does not support SSL", "sslmode", "private key file"),
    *("protocol version", "unsupported protocol", "handshake failure", "no shared cipher"),
)
_OWN_SETTINGS = re.compile(r'definition of service ".*" not found|service file ".*" not found|invalid .*(value|number)')
#: As many bytes in a row beyond ASCII are no accented letters of a Western text any more.
_LONG_RUN = re.compile(rb"[\x80-\xff]{3}")


def connect_failure(error: Exception, arguments: Mapping[str, Any], seconds: float) -> ProcessManagerError:
    """The error of ours for one that ``psycopg2.connect("", **arguments)`` raised.

    ``seconds`` is how long the server may take to say its reason again.
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
        return _of_libpq(_line(raw))
    words = _line(b"; ".join(line.strip() for line in raw.splitlines() if _OF_SERVER in line))
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


def _of_libpq(words: str) -> ProcessManagerError:
    if words.startswith(_NOBODY):
        return ConfigurationError(f"no user of the database is set: set PM_POSTGRES_USER ({words})")
    if any(part in words for part in _OWN_CREDENTIALS):
        return ConfigurationError(f"{_DISTRUSTED}: {words}")
    if any(part in words for part in _OWN_TLS):
        return ConfigurationError(f"no TLS with the database on these terms (sslmode, sslrootcert): {words}")
    if _OWN_SETTINGS.search(words):
        return ConfigurationError(f"{_REFUSES}: {words}")
    return ControlPlaneUnavailable(f"{_PASSING}: {words}")


def _line(raw: bytes) -> str:
    return next((line.strip() for line in lenient(raw).splitlines() if line.strip()), "no reason was given")


def lenient(raw: bytes) -> str:
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
