"""What a dispatch writes while it sends: intents, answers, and the closing of what is answered.

Put here: when it is written, and the patience with a database that goes away. Keep out: what is written, which
``sending`` knows, and how, which is the control plane's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence

from pm_dagster.dispatch.in_doubt import TO_CLOSE
from pm_dagster.dispatch.model import Entry, KnownRun
from pm_dagster.dispatch.ports import Change, ControlPlane, Intent
from pm_dagster.errors import ControlPlaneUnavailable, ProcessManagerError

#: Pauses between tries to reach a database that went away under way; their sum covers a restart. None is so long that
#: whoever has no session meanwhile would pass for dead (``dead_runs``).
_RECONNECT_PAUSES = (0.2, 0.5, 1.0, 2.0, 4.0, 4.0, 4.0)
#: Where each try is itself long in failing, there are fewer: a dispatch must not outlive its deadline by much.
_LONGEST_AWAY_SECONDS = 30.0
#: So long may an answer be recorded before the control table says it.
_CLOSE_EVERY_SECONDS = 1.0
#: And so long may a closing hold up the sending, where the owner's triggers are slow; beyond it, one row.
_LONGEST_CLOSING_SECONDS = 5.0
_SENDING_TO_CLOSING = 3.0


class LedgerWriter:
    """The writes of one stretch of sending. For the one deciding thread.

    While the database is away nothing is sent, and each write is tried again for the time that a restart takes; then
    ControlPlaneUnavailable is raised. ``stop`` ends the pauses.
    """

    def __init__(self, control: ControlPlane, stop: threading.Event, clock: Callable[[], float]) -> None:
        self._control = control
        self._stop = stop
        self._clock = clock
        self._answered: list[int] = []
        self._next_closing = clock() + _CLOSE_EVERY_SECONDS

    def intend(self, intents: Sequence[Intent]) -> set[int]:
        """Commit the intents; returns the ids of the entries that may be sent now."""
        granted: set[int] = set()
        if intents:
            self._persist(lambda: granted.update(self._control.intend(intents)))
        return granted

    def resume(self, entry_ids: Collection[int]) -> list[Entry]:
        """How the entries stand that could not be sent, as far as they are still ours."""
        standing: list[Entry] = []
        if entry_ids:
            self._persist(lambda: standing.extend(self._control.resume(entry_ids)))
        return standing

    def known_runs(self, databricks_run_ids: Collection[int]) -> list[KnownRun]:
        """What the ledger knows of runs that were found."""
        known: list[KnownRun] = []
        if databricks_run_ids:
            self._persist(lambda: known.extend(self._control.known_runs(databricks_run_ids)))
        return known

    def record(self, changes: Sequence[Change]) -> set[int]:
        """Write what was learned; gives the entries that may not take the run which they found."""
        refused: set[int] = set()
        if changes:
            self._persist(lambda: refused.update(self._control.record(changes)))
            self._answered += [change.entry_id for change in changes if change.state in TO_CLOSE]
        return refused

    def salvage(self, changes: Sequence[Change]) -> None:
        """Write what was learned when the sending is broken off: once, without patience."""
        try:
            self._control.record(changes)
        except ProcessManagerError:
            return  # They stay SENDING, and whoever takes over resolves them.

    def tend(self) -> None:
        """What is due from time to time: the sign of life, and the control table for what is answered."""
        self._persist(self._control.heartbeat)
        if self._answered and self._clock() >= self._next_closing:
            due, self._answered = self._answered, []
            began = self._clock()
            self._persist(lambda: self._control.close(due, lambda: self._clock() < began + _LONGEST_CLOSING_SECONDS))
            # Where the control table is slow, sending has most of the time; what is left is closed at the end.
            pause = max(_CLOSE_EVERY_SECONDS, _SENDING_TO_CLOSING * (self._clock() - began))
            self._next_closing = self._clock() + pause

    def _persist(self, write: Callable[[], object]) -> None:
        end = self._clock() + _LONGEST_AWAY_SECONDS
        for pause in _RECONNECT_PAUSES:
            try:
                write()
            except ControlPlaneUnavailable:
                if self._clock() > end:
                    raise
                self._stop.wait(pause)
            else:
                return
        write()
