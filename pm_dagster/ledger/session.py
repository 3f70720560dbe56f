"""One dispatcher's session with the database: its connection, its identity, and how others see that it lives.

The one connection that writes is the one that holds the lock: a dispatcher that lost its lock cannot write either.
Each write is numbered in the dispatcher's own row, in the same transaction. So when a connection breaks at COMMIT, the
next try finds out whether the write was done, and it is done once. What is read and written is ``control_plane``'s.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import psycopg2
from psycopg2.extensions import connection as Connection  # noqa: N812
from psycopg2.extensions import cursor as Cursor  # noqa: N812

from pm_dagster.config.settings import Settings
from pm_dagster.errors import ConfigurationError, ControlPlaneUnavailable, ProcessManagerError
from pm_dagster.ledger import ledger_sql
from pm_dagster.ledger import location as whereabouts
from pm_dagster.ledger.connection import (
    LOCAL_SETTINGS,
    DatabaseIsReadOnly,
    connect,
    longest_transaction,
    named_cursor,
    translated,
)
from pm_dagster.ledger.control_table_sql import ControlTableStatements
from pm_dagster.ledger.grants import demand_rights
from pm_dagster.ledger.layout import Layout, read_layout
from pm_dagster.ledger.schema import check_ledger
from pm_dagster.ledger.server import demand_writable
from pm_dagster.logs import fields
from pm_dagster.net.retry import Retry, retry
from pm_dagster.net.watchdog import Watchdog

T = TypeVar("T")
_log = logging.getLogger(__name__)
#: For a deadlock, a serialization failure, a connection that was cut. Who calls has a longer retry of their own.
_TRANSACTION_RETRY = Retry(pauses=(0.1, 0.3), on=ControlPlaneUnavailable, within=4.0)
#: The time-out of a transaction after one that hung, until one works: several in a row must not outlive the deadline.
_LONGEST_AFTER_A_HANG_SECONDS = 10.0
#: Under a session lock: how long a dispatcher writes nothing before it shows that it lives.
_LONGEST_UNSEEN_SECONDS = 5.0
#: What a transaction needs beside the one statement that takes long.
_BESIDE_THE_LONGEST_SECONDS = 10.0
_NOTHING = object()


@dataclass
class _Write:
    """A write that may have been committed: what it is, its number, and what it gave when it was last tried."""

    key: object
    number: int
    result: Any = _NOTHING


class Session:
    """Connects when first used, and again after the connection was lost, under the same dispatcher id.

    ``actor`` says who dispatches, for ``pm status``. Not thread-safe.
    """

    def __init__(self, settings: Settings, actor: str, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self.settings = settings
        self._actor = actor
        self._sleep = sleep
        self._watchdog = Watchdog(psycopg2.Error)
        self._longest = longest_transaction(settings)

        self._connection: Connection | None = None
        self._connected_before = False
        self._statements: ControlTableStatements | None = None
        self._layout: Layout | None = None
        self._hosts: list[str] = []
        self.environment = ""
        #: What the ledger asks of its operator before anything is dispatched, empty where it is at home.
        self.question = ""

        self._me: int | None = None
        self._liveness = "lock"
        #: Every connection is registered from now on, even for a read.
        self._registers = False
        self._registered = False
        self._next_heartbeat = 0.0

        self._numbers = 0
        self._write = _Write(_NOTHING, 0)

    @property
    def names(self) -> dict[str, Any]:
        """The parameters that most statements share."""
        return {
            "me": self._me or 0,
            "waiting": self.settings.status_waiting,
            "control_table": self.settings.control_table,
        }

    @property
    def statements(self) -> ControlTableStatements:
        """The statements for this owner's names; only inside a transaction."""
        if self._statements is None:
            message = "no transaction is open"
            raise RuntimeError(message)
        return self._statements

    # What a dispatcher does: register, read, write, show that it lives, end.

    def register(self) -> None:
        """Become a dispatcher before the first write, and from now on with every connection."""
        self._registers = True
        self.write(lambda _cursor: None, "register")

    def read(self, work: Callable[[Cursor], T]) -> T:
        """Run ``work`` in a transaction without becoming a dispatcher; one that has registered lives all the while."""
        if self._registers:
            self._outlast(longest_transaction(self.settings))
        return self._retry(lambda: self._transact(work))

    def write(
        self,
        work: Callable[[Cursor], T],
        key: object,
        recheck: Callable[[Cursor, T], T] = lambda _cursor, given: given,
        *,
        longest: float = 0.0,
    ) -> T:
        """Run ``work`` in a transaction as a registered, living dispatcher.

        Args:
            work: What is done; it may run more than once.
            key: What is written. The same key right after a failure is another try of that write: it is done once.
            recheck: Where the write turns out to be committed, gives the result from what ``work`` gave then, for
                others may have written since.
            longest: Seconds that ``work`` may take where that is more than usual.

        Raises:
            ControlPlaneUnavailable: The database did not answer; the next write with this key goes on.
            ConfigurationError: The database refuses the write.
        """
        self._outlast(longest)
        if self._write.key != key:
            self._numbers += 1
            self._write = _Write(key, self._numbers)
        write = self._write
        once = partial(self._once, write=write, work=work, recheck=recheck)
        allowed = longest + _BESIDE_THE_LONGEST_SECONDS if longest else 0.0
        result: T = self._retry(lambda: self._transact(once, write.number, allowed))
        self._write = _Write(_NOTHING, 0)
        if self._liveness == "lock":
            self._put_off_heartbeat()
        return result

    def once(self, work: Callable[[Cursor], T]) -> T:
        """Run ``work`` in a transaction of its own, without becoming a dispatcher and with one try."""
        return self._transact(work)

    def heartbeat(self) -> None:
        """Renew the lease, or find out early that the connection with the session lock is lost, and take it again."""
        if self._me is None or time.monotonic() < self._next_heartbeat:
            return
        try:
            self.write(lambda cursor: cursor.execute(ledger_sql.HEARTBEAT, self._mine()), "heartbeat")
        except ControlPlaneUnavailable as error:
            if self._liveness != "lock":
                raise
            # No lease runs out: the next write fails for the same reason, and says so.
            _log.warning("heartbeat failed", extra=fields(dispatcher=self._me, error=str(error)))
        self._put_off_heartbeat()

    def end(self) -> None:
        """Leave: claims that were not sent are free at once. Never raises an error of ours or the database's."""
        try:
            if self._me is not None and self._connection is not None:
                self._transact(lambda cursor: cursor.execute(ledger_sql.END, self._mine()))
                _log.debug("session ended", extra=fields(dispatcher=self._me))
        except ProcessManagerError as error:
            # The lock goes with the connection, the lease runs out: others see then that it is gone.
            _log.warning("session not ended", extra=fields(dispatcher=self._me, error=str(error)))
        finally:
            self._drop()
            self._watchdog.close()
            self._me = None

    # One transaction: what is run in it, how often it is tried, how long it may take.

    def _once(self, cursor: Cursor, write: _Write, work: Callable[[Cursor], T], recheck: Callable[[Cursor, T], T]) -> T:
        """Do the write, unless it turns out to be committed."""
        if cursor.fetchone() is None:
            if write.result is not _NOTHING:
                _log.info("write found committed", extra=fields(dispatcher=self._me, write=write.number))
                return recheck(cursor, write.result)
            self._registered = False
            message = f"the ledger has no dispatcher {self._me} any more"
            raise ControlPlaneUnavailable(message)
        write.result = result = work(cursor)
        return result

    def _retry(self, work: Callable[[], T]) -> T:
        return retry(work, _TRANSACTION_RETRY, what="a transaction", sleep=self._sleep)

    def _transact(self, work: Callable[[Cursor], T], number: int | None = None, longest: float = 0.0) -> T:
        """Run ``work`` in a transaction; with a ``number`` as that write of this dispatcher."""
        began = time.monotonic()
        try:
            with translated():
                result = self._in_transaction(work, number, longest)
        except ControlPlaneUnavailable as error:
            if time.monotonic() - began >= self._longest:
                self._longest = _LONGEST_AFTER_A_HANG_SECONDS
            if isinstance(error, DatabaseIsReadOnly):
                _log.warning("database is read-only", extra=fields(dispatcher=self._me, error=str(error)))
                # After a failover the old connection may still lead to what is now a standby.
                self._drop()
            elif self._connection is not None and self._connection.closed:
                _log.warning("connection lost", extra=fields(dispatcher=self._me, error=str(error)))
                self._drop()
            raise
        self._longest = longest_transaction(self.settings)
        return result

    def _in_transaction(self, work: Callable[[Cursor], T], number: int | None, longest: float) -> T:
        connection = self._connected()
        with self._watchdog.limit(connection.fileno, max(self._longest, longest)):
            if number is not None or self._registers:
                self._register(connection)
            with connection, named_cursor(connection) as cursor:
                begin = LOCAL_SETTINGS if number is None else ledger_sql.BEGIN_WRITE
                cursor.execute(begin, self.names | {"number": number})
                return work(cursor)

    # The connection, and what it leads to.

    def _connected(self) -> Connection:
        if self._connection is None or self._connection.closed:
            connection = connect(self.settings)
            try:
                with self._watchdog.limit(connection.fileno, self._longest), connection:
                    self._read_what_it_leads_to(connection)
            except BaseException:
                connection.close()
                raise
            self._connection = connection
            self._registered = False
            self._log_connection(connection)
        return self._connection

    def _read_what_it_leads_to(self, connection: Connection) -> None:
        with connection.cursor() as cursor:
            cursor.execute(LOCAL_SETTINGS)
            check_ledger(connection)
            self._layout = read_layout(connection, self.settings)
            self._statements = ControlTableStatements(self.settings, self._layout)
            self._liveness = self._find_liveness(connection)
            if self._liveness == "lock":
                cursor.execute(ledger_sql.NOTICE_OUR_DEATH)
            cursor.execute(ledger_sql.ENVIRONMENT)
            (self.environment,) = cursor.fetchone() or ("",)
        self._hosts = list(whereabouts.hosts(connection))
        self.question = whereabouts.question(connection)

    def _find_liveness(self, connection: Connection) -> str:
        """A pooler gives its own number for the server process; session locks are not to be trusted through it."""
        if self.settings.liveness != "auto":
            return self.settings.liveness
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            (pid,) = cursor.fetchone() or (None,)
        return "lock" if pid == connection.get_backend_pid() else "lease"

    def _log_connection(self, connection: Connection) -> None:
        where = fields(dispatcher=self._me, database=connection.info.dbname, hosts=self._hosts)
        if self._connected_before:
            _log.info("connection reopened", extra=where)
        else:
            _log.debug("connected", extra=where)
        self._connected_before = True
        if self.question:
            _log.warning("ledger elsewhere", extra=fields(environment=self.environment, question=self.question))
        else:
            _log.debug("ledger found", extra=fields(environment=self.environment))

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None
        self._registered = False

    # Being a dispatcher: the session lock or the lease by which others see that it lives.

    def _register(self, connection: Connection) -> None:
        """Become a dispatcher on this connection, or be the same one as on the last."""
        if self._registered:
            return
        if self.question:
            raise ConfigurationError(self.question)
        with connection, connection.cursor() as cursor:
            cursor.execute(LOCAL_SETTINGS)
            demand_writable(connection)
            if self._layout is not None:
                demand_rights(connection, self.settings, self._layout)
            if self._me is None:
                cursor.execute(ledger_sql.NEXT_DISPATCHER)
                (self._me,) = cursor.fetchone() or (0,)
            if self._liveness == "lock":
                self._lock(cursor)
            cursor.execute(ledger_sql.REGISTER, self._mine())
            cursor.execute(ledger_sql.MARK_DEAD, self._mine())
        self._registered = True
        _log.debug("registered", extra=fields(dispatcher=self._me, actor=self._actor, liveness=self._liveness))
        if self._liveness == "lock":
            self._put_off_heartbeat()

    def _lock(self, cursor: Cursor) -> None:
        cursor.execute(ledger_sql.LOCK_DISPATCHER, self._mine())
        (locked,) = cursor.fetchone() or (False,)
        if not locked:
            # No other dispatcher has this number. It is the connection that we lost, and the server does not know yet.
            cursor.execute(ledger_sql.END_FORMER_SESSION, self._mine())
            _log.info("former session ended", extra=fields(dispatcher=self._me))
            message = f"the database still holds the lock of our lost connection (dispatcher {self._me})"
            raise ControlPlaneUnavailable(message)

    def _outlast(self, seconds: float) -> None:
        """Where this dispatcher lives by a lease, let the lease outlast something that takes so long."""
        needed = seconds + _BESIDE_THE_LONGEST_SECONDS
        lasts = not seconds or needed <= self.settings.lease_seconds
        if self._me is None or self._liveness == "lock" or lasts:
            return
        mine = self._mine() | {"lease": needed}
        self._retry(lambda: self._transact(lambda cursor: cursor.execute(ledger_sql.HEARTBEAT, mine)))

    def _put_off_heartbeat(self) -> None:
        pause = _LONGEST_UNSEEN_SECONDS if self._liveness == "lock" else self.settings.lease_seconds / 4
        self._next_heartbeat = time.monotonic() + pause

    def _mine(self) -> dict[str, Any]:
        """The parameters of the statements about this dispatcher's own row."""
        lease = self.settings.lease_seconds
        return {**self.names, "actor": self._actor, "liveness": self._liveness, "lease": lease, "hosts": self._hosts}
