"""One dispatcher's session with the database: its connection, its identity, and how it is known to live.

Put here: connecting, the session lock or lease, transactions and their repetition. Keep out: what is read and written.

The one connection that writes is the one that holds the lock: a dispatcher that lost its lock cannot write either.
Each write is numbered in the dispatcher's own row, in the same transaction. So when a connection breaks at COMMIT, the
repetition finds out whether the write was done, and does it once.
"""

from __future__ import annotations

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
    LOCAL_TIMEOUTS,
    DatabaseIsReadOnly,
    connect,
    longest_transaction,
    translated,
    watched,
)
from pm_dagster.ledger.control_table_sql import ControlTableStatements
from pm_dagster.ledger.grants import demand_rights
from pm_dagster.ledger.layout import Layout, read_layout
from pm_dagster.ledger.schema import check_ledger
from pm_dagster.ledger.server import demand_writable

T = TypeVar("T")
#: Pauses before a transaction is repeated: a deadlock, a serialization failure, a connection that was cut.
_PAUSES = (0.1, 0.3)
#: After a failure that took longer there is no repetition here: those who call have their own, longer patience.
_REPEATED_WITHIN_SECONDS = 4.0
#: So long after one that hung, until the next one that works: several in a row must not outlive the deadline.
_LONGEST_AFTER_SILENCE_SECONDS = 10.0
#: Under a session lock: how long a dispatcher writes nothing before it shows that it lives.
_LONGEST_UNSEEN_SECONDS = 5.0
#: What a transaction needs beside the one statement that takes long.
_AFTER_THE_LONGEST_SECONDS = 10.0
_NOTHING = object()


@dataclass
class _Write:
    """A write that may have been committed: what it is, its number, and what it gave when it was last tried."""

    of: object
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
        self._connection: Connection | None = None
        self._statements: ControlTableStatements | None = None
        self._layout: Layout | None = None
        self._me: int | None = None
        self._liveness = "lock"
        self._next_beat = 0.0
        self._announced = False
        self._patience = longest_transaction(self.settings)
        self._numbers = 0
        self._write = _Write(_NOTHING, 0)
        self._hosts: list[str] = []
        self.environment = ""
        #: What the ledger asks of its operator before anything is dispatched, empty where it is at home.
        self.question = ""

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

    def read(self, work: Callable[[Cursor], T]) -> T:
        """Run ``work`` in a transaction without becoming a dispatcher; one that has registered lives all the while."""
        if self._announced:
            self._live_for(longest_transaction(self.settings))
        return self._repeat(lambda: self._transact(work))

    def write(
        self,
        work: Callable[[Cursor], T],
        of: object,
        still: Callable[[Cursor, T], T] = lambda _cursor, given: given,
        *,
        longest: float = 0.0,
    ) -> T:
        """Run ``work`` in a transaction as a registered, living dispatcher.

        ``of`` says what is written. The same again, right after a failure, is a repetition: it is done once and gives
        ``still`` of what it gave, for others may have written since. ``work`` may run more than once; it may take
        ``longest`` seconds where that is more than usual. Raises ControlPlaneUnavailable or ConfigurationError.
        """
        self._live_for(longest)
        if self._write.of != of:
            self._numbers += 1
            self._write = _Write(of, self._numbers)
        write = self._write
        once = partial(self._once, write=write, work=work, still=still)
        allowed = longest + _AFTER_THE_LONGEST_SECONDS if longest else 0.0
        result: T = self._repeat(lambda: self._transact(once, write.number, allowed))
        self._write = _Write(_NOTHING, 0)
        if self._liveness == "lock":
            self._seen()
        return result

    def _once(self, cursor: Cursor, write: _Write, work: Callable[[Cursor], T], still: Callable[[Cursor, T], T]) -> T:
        """Do the write, unless it turns out to be committed."""
        if cursor.fetchone() is None:
            if write.result is not _NOTHING:
                return still(cursor, write.result)
            self._locked = False
            message = f"the ledger has no dispatcher {self._me} any more"
            raise ControlPlaneUnavailable(message)
        write.result = result = work(cursor)
        return result

    def register(self) -> None:
        """Become a dispatcher before the first write, and from now on with every connection."""
        self._announced = True
        self.write(lambda _cursor: None, "register")

    def heartbeat(self) -> None:
        """Renew the lease, or find out early that the connection with the session lock is lost, and take it again."""
        if self._me is None or time.monotonic() < self._next_beat:
            return
        try:
            self.write(lambda cursor: cursor.execute(ledger_sql.HEARTBEAT, self._mine()), "heartbeat")
        except ControlPlaneUnavailable:
            # Nobody's lease runs out: whoever has something to write will say so.
            if self._liveness != "lock":
                raise
        self._seen()

    def _live_for(self, seconds: float) -> None:
        """Where this dispatcher lives by a lease, let it outlast something that takes so long."""
        needed = seconds + _AFTER_THE_LONGEST_SECONDS
        lasts = not seconds or needed <= self.settings.lease_seconds
        if self._me is None or self._liveness == "lock" or lasts:
            return
        mine = self._mine() | {"lease": needed}
        self._repeat(lambda: self._transact(lambda cursor: cursor.execute(ledger_sql.HEARTBEAT, mine)))

    def _seen(self) -> None:
        """The next sign of life is due in a while."""
        pause = _LONGEST_UNSEEN_SECONDS if self._liveness == "lock" else self.settings.lease_seconds / 4
        self._next_beat = time.monotonic() + pause

    def end(self) -> None:
        """Leave: claims that were not sent are free at once. Never raises an error of ours or the database's."""
        try:
            if self._me is not None and self._connection is not None:
                self._transact(lambda cursor: cursor.execute(ledger_sql.END, self._mine()))
        except ProcessManagerError:
            pass
        finally:
            self._drop()
            self._me = None

    def _mine(self) -> dict[str, Any]:
        lease = self.settings.lease_seconds
        return {**self.names, "actor": self._actor, "liveness": self._liveness, "lease": lease, "hosts": self._hosts}

    def _repeat(self, work: Callable[[], T]) -> T:
        end = time.monotonic() + _REPEATED_WITHIN_SECONDS
        for pause in _PAUSES:
            try:
                return work()
            except ControlPlaneUnavailable:
                if time.monotonic() > end:
                    raise
                self._sleep(pause)
        return work()

    def _transact(self, work: Callable[[Cursor], T], number: int | None = None, longest: float = 0.0) -> T:
        """Run ``work`` in a transaction; with a ``number`` as that write of this dispatcher."""
        began = time.monotonic()
        try:
            with translated():
                result = self._in_transaction(work, number, longest)
        except ControlPlaneUnavailable as error:
            if time.monotonic() - began >= self._patience:
                self._patience = _LONGEST_AFTER_SILENCE_SECONDS
            # After a failover the old connection may still lead to what is now a standby.
            if isinstance(error, DatabaseIsReadOnly) or (self._connection is not None and self._connection.closed):
                self._drop()
            raise
        except psycopg2.Error:
            self._drop()
            raise
        self._patience = longest_transaction(self.settings)
        return result

    def _in_transaction(self, work: Callable[[Cursor], T], number: int | None, longest: float) -> T:
        connection = self._connected()
        with watched(connection, max(self._patience, longest)):
            if number is not None or self._announced:
                self._register(connection)
            with connection, connection.cursor() as cursor:
                begin = LOCAL_TIMEOUTS if number is None else ledger_sql.BEGIN_WRITE
                cursor.execute(begin, self.names | {"number": number})
                return work(cursor)

    def _connected(self) -> Connection:
        if self._connection is None or self._connection.closed:
            connection = connect(self.settings)
            try:
                with watched(connection, self._patience), connection:
                    self._get_to_know(connection)
            except BaseException:
                connection.close()
                raise
            self._connection = connection
            self._locked = False
        return self._connection

    def _get_to_know(self, connection: Connection) -> None:
        """Read what a new connection leads to."""
        with connection.cursor() as cursor:
            cursor.execute(LOCAL_TIMEOUTS)
            check_ledger(connection)
            self._layout = read_layout(connection, self.settings)
            self._statements = ControlTableStatements(self.settings, self._layout)
            self._liveness = self._find_liveness(connection)
            if self._liveness == "lock":
                cursor.execute(ledger_sql.NOTICE_OUR_DEATH)
            cursor.execute(ledger_sql.ENVIRONMENT)
            self.environment = str((cursor.fetchone() or ("",))[0])
        self._hosts = list(whereabouts.hosts(connection))
        self.question = whereabouts.question(connection)

    def _find_liveness(self, connection: Connection) -> str:
        """A pooler gives its own number for the server process; session locks are not to be trusted through it."""
        if self.settings.liveness != "auto":
            return self.settings.liveness
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            row = cursor.fetchone()
        return "lock" if row and row[0] == connection.get_backend_pid() else "lease"

    def _register(self, connection: Connection) -> None:
        if self._locked:
            return
        if self.question:
            raise ConfigurationError(self.question)
        with connection, connection.cursor() as cursor:
            cursor.execute(LOCAL_TIMEOUTS)
            demand_writable(connection)
            if self._layout is not None:
                demand_rights(connection, self.settings, self._layout)
            if self._me is None:
                cursor.execute(ledger_sql.NEXT_DISPATCHER)
                self._me = int((cursor.fetchone() or (0,))[0])
            if self._liveness == "lock":
                self._lock(cursor)
            cursor.execute(ledger_sql.REGISTER, self._mine())
            cursor.execute(ledger_sql.BURY, self._mine())
        self._locked = True
        if self._liveness == "lock":
            self._seen()

    def _lock(self, cursor: Cursor) -> None:
        cursor.execute(ledger_sql.LOCK_DISPATCHER, self._mine())
        if not (cursor.fetchone() or (False,))[0]:
            # Nobody else has our number, so it is our lost connection, of whose loss the server has not heard.
            cursor.execute(ledger_sql.END_FORMER_SESSION, self._mine())
            message = f"the database still holds the lock of our lost connection (dispatcher {self._me})"
            raise ControlPlaneUnavailable(message)

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None
        self._locked = False
