"""The rule by which a run that the orchestrator says is under way is dead.

Plain Python: how the facts are found is in ``automation``.

The ledger decides: a dispatch that works has a dispatcher that lives. A living run may have none for a while: it is
starting, it waits for a retry, it is between two processes, it lost its connection a moment ago. Ending such a run
harms no row, because the ledger keeps two dispatches apart; it would only look like a failure. So a dispatcher that
died in the middle of its work counts after seconds, and what may have a harmless reason after minutes.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from pm_dagster.dispatch.ports import SignOfLife

#: A dispatcher shows every 5 s that it lives, and restores a lost connection within that time, or within 4 s of the
#: return of a database that restarted.
QUIET_SECONDS = 15.0
#: The same where its worker is known to be gone as well: two things that hardly ever come together by chance.
GONE_SECONDS = 8.0
#: Longer than the pause before a retry, the start of a process on a busy machine, and tries to reach the database.
REST_SECONDS = 120.0
#: A worker that was requested a moment ago may not have shown itself yet.
LAUNCH_SECONDS = 30.0
#: A machine for the worker may have to be made first.
START_SECONDS = 1200.0


class Stage(StrEnum):
    """What the orchestrator says of the run."""

    QUEUED = "queued"
    STARTING = "starting"
    STARTED = "started"
    CANCELING = "being cancelled"


class Worker(StrEnum):
    """What the process that started the run's worker says of it."""

    THERE = "there"
    #: It does not know the worker, or is gone itself.
    GONE = "gone"
    #: Nobody can be asked.
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class RunFacts:
    """A run under way.

    Attributes:
        stage: What the orchestrator says of it.
        quiet_seconds: Since its last event, or since it was made if it has none.
        worker: What is known of its worker.
        queue_is_served: Whether anything starts queued runs at all.
        steps_apart: Whether a time without any dispatcher is nothing unusual, because each step is a process of its own
            or a step waits for its retry.
    """

    stage: Stage
    quiet_seconds: float
    worker: Worker = Worker.UNKNOWN
    queue_is_served: bool = True
    steps_apart: bool = False


@dataclass(frozen=True)
class Verdict:
    """Whether the run is dead, and why; ``doubtful`` when it may live and has shown no sign of life for a while."""

    dead: bool
    why: str
    doubtful: bool = False


def verdict(run: RunFacts, sign: SignOfLife | None) -> Verdict:
    """Judge a run by what the orchestrator and the ledger know; ``sign`` is None when it never was a dispatcher."""
    if sign is not None and sign.alive:
        return Verdict(dead=False, why="its dispatcher lives")
    if run.worker is Worker.THERE:
        return Verdict(dead=False, why="its worker process lives")
    why, limit = _without_dispatcher(run, sign)
    quiet = run.quiet_seconds if sign is None else min(run.quiet_seconds, sign.seconds_ago)
    why = f"{why}; its last sign of life is {quiet:.0f} s old"
    if limit is not None and quiet >= limit:
        return Verdict(dead=True, why=why)
    ended_after = "" if limit is None else f" (the run is ended after {limit:.0f} s)"
    return Verdict(dead=False, why=why + ended_after, doubtful=quiet >= QUIET_SECONDS)


def _without_dispatcher(run: RunFacts, sign: SignOfLife | None) -> tuple[str, float | None]:
    """The state of a run without a living dispatcher, and after how many quiet seconds it is dead; None: never."""
    gone = run.worker is Worker.GONE
    if run.stage is Stage.QUEUED:
        # A queue that is served may be long, and a run that is requested anew would be its last.
        return ("it waits in the run queue", None) if run.queue_is_served else ("no run queue starts it", START_SECONDS)
    if sign is None:
        if run.stage is Stage.STARTING:
            if gone:
                return "its worker process died before it started", LAUNCH_SECONDS
            return "it is starting", START_SECONDS
        return "it never registered in the ledger", LAUNCH_SECONDS if gone else REST_SECONDS
    if sign.left:
        return "its dispatcher signed off from the ledger", REST_SECONDS
    if run.steps_apart:
        return "its dispatcher died", REST_SECONDS
    if gone:
        return "its dispatcher and its worker process died", GONE_SECONDS
    return "its dispatcher died", QUIET_SECONDS
