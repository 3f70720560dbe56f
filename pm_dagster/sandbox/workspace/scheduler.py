"""Which run of a job may start, and the queue of transitions that are due.

What a transition does is in ``lifecycle.py``. The state calls this module under its lock. There is no clock thread:
whoever looks at the state brings it up to now first.
"""

from __future__ import annotations

import heapq
from collections import defaultdict, deque
from collections.abc import Callable

from pm_dagster.sandbox.workspace import lifecycle
from pm_dagster.sandbox.workspace.model import Run


class Scheduler:
    """Keeps each job within its number of concurrent runs."""

    def __init__(
        self, limit_of: Callable[[int], int], changed: Callable[[Run], None], execute: Callable[[Run], None]
    ) -> None:
        self._limit_of, self._changed, self._execute = limit_of, changed, execute
        self._agenda: list[tuple[float, int]] = []
        self._runs: dict[int, Run] = {}
        self._busy: defaultdict[int, set[int]] = defaultdict(set)
        self._queues: defaultdict[int, deque[int]] = defaultdict(deque)

    def full(self, job_id: int) -> bool:
        """True when the job has no free place."""
        return len(self._busy[job_id]) >= self._limit_of(job_id)

    def admit(self, run: Run, now: float, *, may_queue: bool) -> None:
        """Start, queue or skip the run's last attempt."""
        limit = self._limit_of(run.job_id)
        if not self.full(run.job_id):
            self.start(run, now)
        elif may_queue and limit > 0:
            lifecycle.queue(run.last, now, limit)
            self._runs[run.run_id] = run
            self._queues[run.job_id].append(run.run_id)
        else:
            lifecycle.skip(run.last, now, limit)

    def start(self, run: Run, now: float) -> None:
        """Start the run's last attempt, whatever the limit says."""
        lifecycle.begin(run.last, now)
        self._runs[run.run_id] = run
        self._busy[run.job_id].add(run.run_id)
        self.note(run)
        if run.last.executes:
            self._execute(run)

    def executing(self) -> list[Run]:
        """The runs that were started and whose tasks execute."""
        runs = [self._runs[run_id] for places in self._busy.values() for run_id in places]
        return [run for run in runs if run.last.executes]

    def note(self, run: Run) -> None:
        """Put the run's next transition on the agenda."""
        if run.last.due is not None:
            heapq.heappush(self._agenda, (run.last.due, run.run_id))

    def adopt(self, run: Run) -> None:
        """Take over an active run that was loaded from a file."""
        self._runs[run.run_id] = run
        if run.last.life == "QUEUED":
            self._queues[run.job_id].append(run.run_id)
        else:
            self._busy[run.job_id].add(run.run_id)
            self.note(run)

    def release(self, run: Run, now: float) -> None:
        """Free the place of a run that ended or vanished, and start those that waited for it."""
        self._runs.pop(run.run_id, None)
        self._busy[run.job_id].discard(run.run_id)
        queue = self._queues[run.job_id]
        if run.run_id in queue:
            queue.remove(run.run_id)
        self.fill(run.job_id, now)

    def fill(self, job_id: int, now: float) -> None:
        """Start runs that wait while the job has free places."""
        queue = self._queues[job_id]
        while queue and not self.full(job_id):
            waiting = self._runs[queue.popleft()]
            # A run that was cancelled in the queue is TERMINATING and must not begin.
            if waiting.last.life == "QUEUED":
                self.start(waiting, now)
                self._changed(waiting)

    def advance(self, now: float) -> None:
        """Make every transition that is due, in order of time."""
        while self._agenda and self._agenda[0][0] <= now:
            due, run_id = heapq.heappop(self._agenda)
            run = self._runs.get(run_id)
            if run is None or run.last.due != due:
                continue
            lifecycle.step(run.last)
            self._changed(run)
            if run.last.active:
                self.note(run)
            else:
                self.release(run, due)
