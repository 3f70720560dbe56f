"""What a dispatch writes while its calls are under way: intents, answers, and the closing of what is answered."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Sequence
from typing import TypeVar

from pm_dagster.config.masking import scrubbed
from pm_dagster.dispatch.in_doubt import TO_CLOSE
from pm_dagster.dispatch.model import Entry, KnownRun
from pm_dagster.dispatch.ports import Change, Closed, ControlPlane, Written
from pm_dagster.errors import ControlPlaneUnavailable, ProcessManagerError
from pm_dagster.logs import fields
from pm_dagster.net.retry import Retry, retry

T = TypeVar("T")
_log = logging.getLogger(__name__)

#: The sum of the pauses covers a restart of the database. None is so long that a dispatcher without a session would
#: pass for dead meanwhile (``dead_runs``). Where each try takes long to fail there are fewer: a dispatch must not
#: outlive its deadline by much.
_RECONNECT = Retry(pauses=(0.2, 0.5, 1.0, 2.0, 4.0, 4.0, 4.0), on=ControlPlaneUnavailable, within=30.0)
#: The control table says an answer at most so long after it was recorded.
_CLOSE_EVERY_SECONDS = 1.0
#: A closing holds up the sending for at most so long where the owner's triggers are slow; beyond it, for one row.
_LONGEST_CLOSING_SECONDS = 5.0
#: Sending gets so many times the time that a slow closing took.
_SENDING_TO_CLOSING = 3.0


class LedgerWriter:
    """The writes of one stretch of sending, for its one deciding thread.

    While the database is away nothing is sent. Each write is tried again for the time that a restart takes; then it
    raises ControlPlaneUnavailable.

    Args:
        control: Where it writes.
        stop: Ends the pauses between tries when set.
        clock: Seconds that only grow.
        on_closed: Is told of the entries that are closed while sending goes on.
    """

    def __init__(
        self,
        control: ControlPlane,
        stop: threading.Event,
        clock: Callable[[], float],
        on_closed: Callable[[Sequence[Closed]], None] = lambda _closed: None,
    ) -> None:
        self._control = control
        self._stop = stop
        self._clock = clock
        self._on_closed = on_closed
        self._answered: list[int] = []
        self._next_closing = clock() + _CLOSE_EVERY_SECONDS

    def write(self, changes: Sequence[Change], entries: Sequence[Entry]) -> Written:
        """Write what was learned and commit the intents of the entries' calls, in one transaction."""
        if not changes and not entries:
            return Written(set(), set())
        what = "record answers, commit intents"
        written = self._persist(what, lambda: self._control.record_and_intend(changes, entries))
        self._answered += [change.entry_id for change in changes if change.state in TO_CLOSE]
        return written

    def resume(self, entry_ids: Collection[int]) -> list[Entry]:
        """How the entries stand that could not be sent, as far as they are still ours."""
        return self._persist("read entries", lambda: self._control.resume(entry_ids)) if entry_ids else []

    def known_runs(self, databricks_run_ids: Collection[int]) -> list[KnownRun]:
        """What the ledger knows of runs that were found."""
        if not databricks_run_ids:
            return []
        return self._persist("read known runs", lambda: self._control.known_runs(databricks_run_ids))

    def record_once(self, changes: Sequence[Change]) -> None:
        """Write what was learned when the sending is broken off: one try, and no error.

        Entries that cannot be written stay in doubt, and the dispatch that rescues them finds out.
        """
        try:
            self._control.record(changes)
        except ProcessManagerError as error:
            _log.warning("answers not recorded", extra=fields(entries=len(changes), error=scrubbed(str(error))))

    def flush(self) -> None:
        """What is due from time to time: the heartbeat, and writing the control table for what is answered."""
        self._persist("heartbeat", self._control.heartbeat)
        if self._answered and self._clock() >= self._next_closing:
            due, self._answered = self._answered, []
            began = self._clock()
            closed = self._persist("close entries", lambda: self._close(due, began + _LONGEST_CLOSING_SECONDS))
            took = self._clock() - began
            _log.debug("entries closed", extra=fields(due=len(due), closed=len(closed), seconds=round(took, 3)))
            self._on_closed(closed)
            # What a slow control table leaves open is closed at the end of the dispatch.
            self._next_closing = self._clock() + max(_CLOSE_EVERY_SECONDS, _SENDING_TO_CLOSING * took)

    def _close(self, entry_ids: Collection[int], until: float) -> list[Closed]:
        return self._control.close(entry_ids, lambda: self._clock() < until)

    def _persist(self, what: str, write: Callable[[], T]) -> T:
        return outlast(what, write, self._stop, self._clock)


def outlast(what: str, ask: Callable[[], T], stop: threading.Event, clock: Callable[[], float]) -> T:
    """Ask the database, again and again for the time that a restart of it takes. Raises ControlPlaneUnavailable."""
    return retry(ask, _RECONNECT, what=what, sleep=stop.wait, clock=clock)
