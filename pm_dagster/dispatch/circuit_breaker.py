"""What a dispatch does while the workspace answers nobody: tries with single calls and growing pauses, then stops.

Put here: telling a workspace that is away from one row that fails. Keep out: the tries of one call (``decisions``) and
throttling (``governor``), which is an answer.
"""

from __future__ import annotations

from collections.abc import Callable

from pm_dagster.errors import ProcessManagerError, WorkspaceUnavailable

_SERVER_ERROR = 500


class CircuitBreaker:
    """Counts calls in a row that brought no answer. For the one deciding thread.

    Once as many calls as fit in flight were met by silence, calls go one by one, each after a pause that doubles from
    ``backoff`` seconds on; after ``tries`` of these it is ``lasting``. Any answer ends it. ``met`` are the kinds of
    calls that were met by it: the single calls should be of others, for it may be one job alone that has no answer.
    """

    def __init__(self, concurrency: int, tries: int, backoff: float, clock: Callable[[], float]) -> None:
        # More than a single row can cause.
        self._enough = max(concurrency, tries + 1)
        self._tries = tries
        self._backoff = backoff
        self._clock = clock
        self._unanswered = 0
        self._probes = 0
        self._quiet_until = 0.0
        self._ever_answered = False
        self.met: set[object] = set()

    def note(self, error: ProcessManagerError | None, kind: object = None) -> None:
        """Hear how a call of a kind ended; None for a good answer."""
        if not _is_silence(error):
            self._ever_answered = True
            self._unanswered = self._probes = 0
            self.met.clear()
            return
        self.met.add(kind)
        self._unanswered += 1
        now = self._clock()
        if self._unanswered >= self._enough and now >= self._quiet_until:
            self._quiet_until = now + self._backoff * 2**self._probes
            self._probes += 1

    @property
    def spell(self) -> bool:
        """True while calls go one by one."""
        return self._probes > 0

    @property
    def delay(self) -> float:
        """Seconds until the next call may start; 0 when it may start now."""
        return max(0.0, self._quiet_until - self._clock()) if self.spell else 0.0

    def lasting(self, *, row_gives_up: bool) -> bool:
        """Whether to go on is pointless.

        A row that gives up is enough during a spell, and where the workspace has never answered; else it may be that
        row alone.
        """
        return self._probes > self._tries or (row_gives_up and (self.spell or not self._ever_answered))


def _is_silence(error: ProcessManagerError | None) -> bool:
    """A 500 is an answer about one call: a job that the workspace cannot start must not stop the other jobs."""
    return isinstance(error, WorkspaceUnavailable) and error.status != _SERVER_ERROR
