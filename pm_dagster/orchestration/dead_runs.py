"""Whether a run of the orchestrator that is said to be under way is dead without having said so.

Put here: the rule. Keep out: how the facts are found (``orchestration``).

The ledger decides: a dispatch that works is a dispatcher that lives. What has to be allowed for is a living run without
one: it starts, it waits for a retry, it is between two processes, it lost its connection a moment ago. To end such a
run harms no row, because the ledger keeps two dispatches apart; it would only look like a failure. So a dispatcher that
died in the middle of its work counts after seconds, and what may have a harmless reason after minutes.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from pm_dagster.dispatch.ports import SignOfLife

#: A dispatcher shows every 5 s that it lives, and takes up a lost connection again within that time, or within 4 s of
#: the return of a database that restarted.
QUIET_SECONDS = 15.0
#: The same where its worker is known to be gone as well: two things that hardly ever come together by chance.
GONE_SECONDS = 8.0
#: Longer than the pause before a retry, the start of a process on a busy machine, and tries to reach the database.
REST_SECONDS = 120.0
#: A worker that was asked for a moment ago may not have said so yet.
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
    #: It does not know of the worker, or is gone itself.
    GONE = "gone"
    #: Nobody can be asked.
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class RunFacts:
    """A run under way. ``quiet_seconds``: since its last event, or since it was made if it has none.

    ``queue_is_served``: whether somebody starts queued runs at all. ``steps_apart``: whether a time without any
    dispatcher is nothing unusual, because each step is a process of its own or a step waits for its retry.
    """

    stage: Stage
    quiet_seconds: float
    worker: Worker = Worker.UNKNOWN
    queue_is_served: bool = True
    steps_apart: bool = False


@dataclass(frozen=True)
class Verdict:
    """Whether the run is dead, and why; ``doubtful`` when it may live and has shown nothing of it for a while."""

    dead: bool
    why: str
    doubtful: bool = False


def verdict(run: RunFacts, sign: SignOfLife | None) -> Verdict:
    """Judge a run by what the orchestrator and the ledger know; ``sign`` is None when it never was a dispatcher."""
    if sign is not None and sign.alive:
        return Verdict(dead=False, why="its dispatcher lives")
    if run.worker is Worker.THERE:
        return Verdict(dead=False, why="its worker is there")
    why, limit = _without_dispatcher(run, sign)
    quiet = run.quiet_seconds if sign is None else min(run.quiet_seconds, sign.seconds_ago)
    if limit is None or quiet < limit:
        doubtful = quiet >= QUIET_SECONDS
        given_up = "" if limit is None else f" (given up after {limit:.0f} s)"
        return Verdict(dead=False, why=f"{why}, nothing heard of it for {quiet:.0f} s{given_up}", doubtful=doubtful)
    return Verdict(dead=True, why=f"{why}, and nothing was heard of it for {quiet:.0f} s")


def _without_dispatcher(run: RunFacts, sign: SignOfLife | None) -> tuple[str, float | None]:
    """What is known of a run that shows no sign of life, and after how long a silence it is dead; None: never."""
    gone = run.worker is Worker.GONE
    if run.stage is Stage.QUEUED:
        # A queue that is served may be long, and a run that is asked for anew would be its last.
        return ("it waits in the run queue", None) if run.queue_is_served else ("no run queue starts it", START_SECONDS)
    if sign is None:
        if run.stage is Stage.STARTING:
            return ("its worker is gone before it began", LAUNCH_SECONDS) if gone else ("it starts", START_SECONDS)
        return "it never registered in the ledger", LAUNCH_SECONDS if gone else REST_SECONDS
    if sign.left:
        return "its dispatcher left the ledger", REST_SECONDS
    if run.steps_apart:
        return "its dispatcher died", REST_SECONDS
    return ("its dispatcher and its worker died", GONE_SECONDS) if gone else ("its dispatcher died", QUIET_SECONDS)
