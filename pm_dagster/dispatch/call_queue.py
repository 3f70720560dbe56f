"""Which work is next: per endpoint the earliest due first, as fast as the governor lets it.

Put here: order and time. Keep out: what the work is, and making its calls.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterator, Sequence

from pm_dagster.dispatch.call_execution import Work
from pm_dagster.dispatch.ports import Call
from pm_dagster.dispatch.rate_limiter import RateLimiter


class CallQueue:
    """The works that wait for their next call. For the one deciding thread; ``clock`` is monotonic seconds."""

    def __init__(self, governor: RateLimiter, clock: Callable[[], float]) -> None:
        self._governor = governor
        self._clock = clock
        self._due: dict[Call, list[tuple[float, int, Work]]] = {call: [] for call in Call}
        self._order = itertools.count()

    def __bool__(self) -> bool:
        """True while any work waits."""
        return any(self._due.values())

    def __iter__(self) -> Iterator[Work]:
        """The works that wait, in no order."""
        return (work for queue in self._due.values() for _, _, work in queue)

    def add(self, work: Work, delay: float) -> None:
        """Let the work's next call wait for at least ``delay`` seconds."""
        heapq.heappush(self._due[work.call], (self._clock() + delay, next(self._order), work))

    def take(self, room: int) -> list[Work]:
        """The works whose time and pace have come, at most ``room``."""
        taken: list[Work] = []
        for call, queue in self._due.items():
            while queue and len(taken) < room:
                if queue[0][0] > self._clock() or self._governor.delay(call) > 0:
                    break
                self._governor.take(call)
                taken.append(heapq.heappop(queue)[2])
        return taken

    def probe(self, avoid: Callable[[Work], bool]) -> list[Work]:
        """One work whose time and pace have come, rather one that is not to be avoided; empty without one."""
        now = self._clock()
        paced = [queue for call, queue in self._due.items() if self._governor.delay(call) <= 0]
        ready = [item for queue in paced for item in queue if item[0] <= now]
        if not ready:
            return []
        item = min(ready, key=lambda item: (avoid(item[2]), item[0], item[1]))
        queue = self._due[item[2].call]
        queue.remove(item)
        heapq.heapify(queue)
        self._governor.take(item[2].call)
        return [item[2]]

    def set_aside(self, calls: Sequence[Call]) -> list[Work]:
        """Take out all works that wait for these calls, due or not."""
        aside = [work for call in calls for _, _, work in self._due[call]]
        self._due.update({call: [] for call in calls})
        return aside

    @property
    def delay(self) -> float:
        """Seconds until the next work may be taken; infinite when none waits."""
        moments = (max(self._governor.delay(c), q[0][0] - self._clock()) for c, q in self._due.items() if q)
        return max(0.0, min(moments, default=float("inf")))
