"""A deployed job over the fake workspace, with a clock that only sleeping moves. Keep out: expectations."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from typing import Any

from pm_dagster.errors import WorkspaceUnavailable
from pm_dagster.launcher.launch import Launch, Order
from pm_dagster.launcher.run_outcome import LaunchOutcome
from pm_dagster_tests.fakes.deployed_jobs import RUNNING, InMemoryDeployedJobs, Job, State
from pm_dagster_tests.fakes.runs import Fault

JOB = 2**53 + 5
LOST_ANSWER = Fault(WorkspaceUnavailable("the connection broke"), after_effect=True)
NO_ANSWER = Fault(WorkspaceUnavailable("no answer"))
NEVER_SENT = Fault(WorkspaceUnavailable("cannot connect", maybe_applied=False))


class Interrupted(BaseException):
    """What ends a wait from outside."""


@dataclass
class Bench:
    """A job, an order, and a clock that only sleeping moves."""

    jobs: InMemoryDeployedJobs
    order: Order = field(default_factory=lambda: Order("token", deadline_seconds=60, poll_seconds=5))
    now: float = 0.0
    naps: list[float] = field(default_factory=list)
    interrupt_at: float = float("inf")
    lines: list[str] = field(default_factory=list)

    def run(self, **changes: Any) -> LaunchOutcome:  # noqa: ANN401
        """Start and wait."""
        order = replace(self.order, **changes)
        return Launch(self.jobs, order, self._log(), lambda: self.now, self._sleep).run()

    def _sleep(self, seconds: float) -> None:
        self.naps.append(seconds)
        self.now += seconds
        if self.now >= self.interrupt_at:
            raise Interrupted

    def _log(self) -> logging.Logger:
        # Of its own, so that no other logger's handlers or level matter.
        log = logging.Logger("bench")  # noqa: LOG001
        handler = logging.Handler()
        handler.emit = lambda record: self.lines.append(record.getMessage())  # type: ignore[method-assign]
        log.addHandler(handler)
        return log


def bench(*states: State, **job: Any) -> Bench:  # noqa: ANN401
    """A bench with one job that goes through these states."""
    return Bench(InMemoryDeployedJobs(Job(JOB, states=states or (RUNNING,), **job)))


def run_ids(at: Bench) -> list[int]:
    return list(at.jobs.runs)
