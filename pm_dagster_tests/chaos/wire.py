"""A front before a Postgres server that acts at an exact statement: kills, cuts, swallows or holds.

Put here: the protocol's messages, and rules that wait for one. Keep out: which statements matter (``boundaries.py``).
The dispatch that talks through it is unmodified; it only has another port. Facts:
https://www.postgresql.org/docs/current/protocol-message-formats.html; psycopg2 2.9 sends simple queries only, BEGIN and
COMMIT as messages of their own.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import BinaryIO, Literal, Self
from urllib.parse import quote

from pm_dagster_tests.chaos.wire_messages import (
    IDLE,
    QUERY,
    READY,
    Target,
    connected,
    greeting,
    message,
    opened,
    sql_of,
)

When = Literal["before", "after"]
At = Literal["statement", "commit"]
#: What a rule's action says about the message, or the answer, that it was called for.
Then = Literal["go on", "cut", "swallow"]
_COMMIT = "COMMIT"


@dataclass
class Rule:
    """What happens at a message.

    ``text`` is a piece of the SQL; ``at`` "commit" means the COMMIT of the transaction in which it was seen, and in
    which the piece ``also`` was seen. ``when``
    "before": the server has not had the message yet; "after": the server has answered, the client has heard nothing.
    ``action`` runs in a thread of the front while the connection waits. ``skip`` messages pass first, then ``count``
    are met. ``fired`` is set once the action has returned for the first time.
    """

    text: str
    action: Callable[[], Then]
    when: When = "before"
    at: At = "statement"
    skip: int = 0
    count: int = 1
    fired: threading.Event = field(default_factory=threading.Event)
    met: int = 0
    also: str = ""

    def fits(self, statement: str, seen: list[str]) -> bool:
        """Whether the message is the one, given the statements of its transaction, itself included."""
        if self.at == "commit":
            return statement == _COMMIT and all(any(piece in each for each in seen) for piece in (self.text, self.also))
        return self.text in statement


class WireFront:
    """Listens on 127.0.0.1 and passes every connection on to ``target``: (host, port), or the path of a socket."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._lock = threading.Lock()
        self._rules: list[Rule] = []
        self._wires: list[_Wire] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._closing = False
        self._thread = threading.Thread(target=self._accept, name="wire-front", daemon=True)

    @property
    def port(self) -> int:
        """The port to connect to."""
        return int(self._listener.getsockname()[1])

    def url(self, database: str, user: str = "postgres", password: str = "") -> str:
        """The libpq URL of a database through this front."""
        secret = f":{quote(password, safe='')}" if password else ""
        return f"postgresql://{user}{secret}@127.0.0.1:{self.port}/{quote(database, safe='')}"

    def add(self, rule: Rule) -> Rule:
        """Put a rule in force; of several that fit, all act in this order, until one says to go no further."""
        with self._lock:
            self._rules.append(rule)
        return rule

    def clear(self) -> None:
        """Take all rules out of force."""
        with self._lock:
            self._rules.clear()

    def cut_all(self) -> None:
        """Close every connection, as a network that breaks."""
        with self._lock:
            wires = list(self._wires)
        for wire in wires:
            wire.cut()

    def remove(self, rule: Rule) -> None:
        """Take one rule out of force, if it is."""
        with self._lock:
            self._rules = [each for each in self._rules if each is not rule]

    def unmet(self) -> list[Rule]:
        """The rules in force that no message has met yet."""
        with self._lock:
            return [rule for rule in self._rules if not rule.met]

    def take(self, statement: str, seen: list[str]) -> list[Rule]:
        """The rules that act on this statement; each that fits counts as met."""
        with self._lock:
            fitting = [rule for rule in self._rules if rule.fits(statement, seen)]
            for rule in fitting:
                rule.met += 1
            return [rule for rule in fitting if rule.skip < rule.met <= rule.skip + rule.count]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing = True
        # Closing alone does not wake accept() on Linux.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut_all()
        self._thread.join(10)
        for wire in self._wires:
            wire.join()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            # An answer is several messages: by Nagle's algorithm each would wait 40 ms for the last one's ACK.
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                wire = _Wire(self, client, self._target)
                self._wires = [each for each in self._wires if each.alive] + [wire]
            wire.start()
            if self._closing:
                wire.cut()


class _Wire:
    """One connection and its two directions."""

    def __init__(self, front: WireFront, client: socket.socket, target: Target) -> None:
        self._front = front
        self._client = client
        self._target = target
        self._server: socket.socket | None = None
        self._seen: list[str] = []
        self._after: list[Rule] = []
        self._mute = False
        self._up = threading.Thread(target=self._run, name="wire-up", daemon=True)
        self._down = threading.Thread(target=self._answers, name="wire-down", daemon=True)

    @property
    def alive(self) -> bool:
        return self._up.is_alive() or self._down.is_alive()

    def start(self) -> None:
        self._up.start()

    def join(self) -> None:
        self._up.join(10)
        if self._down.ident is not None:
            self._down.join(10)

    def cut(self) -> None:
        for end in (self._client, self._server):
            if end is not None:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def _run(self) -> None:
        # An OSError is a peer that is gone: the other one learns it by the cut.
        with contextlib.suppress(OSError), self._client, connected(self._target) as server:
            self._server = server
            try:
                with self._client.makefile("rb") as source:
                    server.sendall(greeting(source, self._client))
                    self._down.start()
                    self._queries(source, server)
            finally:
                self.cut()
                if self._down.ident is not None:
                    self._down.join()

    def _queries(self, source: BinaryIO, server: socket.socket) -> None:
        while True:
            kind, raw = message(source)
            if kind == QUERY and not self._passes(raw):
                continue
            server.sendall(raw)

    def _passes(self, query: bytes) -> bool:
        """Apply the rules to a query; false when the server is not to have it."""
        statement = sql_of(query)
        self._seen.append(statement)
        rules = self._front.take(statement, self._seen)
        self._after = [rule for rule in rules if rule.when == "after"]
        return all(self._act(rule) for rule in rules if rule.when == "before")

    def _act(self, rule: Rule) -> bool:
        """Run the action; false when what it was called for goes no further."""
        then = rule.action()
        if then == "cut":
            self.cut()
        rule.fired.set()
        return then == "go on"

    def _answers(self) -> None:
        held = b""
        with contextlib.suppress(OSError), opened(self._server) as source:
            while True:
                kind, raw = message(source)
                ready = kind == READY
                if ready and raw[5:6] == IDLE:
                    self._seen = []
                held += raw
                if self._after and not ready:
                    continue
                rules, self._after = self._after, []
                self._mute = self._mute or not all(self._act(rule) for rule in rules)
                if not self._mute:
                    self._client.sendall(held)
                held = b""
        self.cut()
