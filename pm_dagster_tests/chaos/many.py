"""Many dispatches at once, killed and started again at random, until nothing waits.

Put here: the crowd, its rows and its faults. Keep out: what must be true afterwards (``oracle.py``). All chance comes
from one seed, given by PROOF_SEED; what the processes make of it is never quite the same twice.
"""

from __future__ import annotations

import os
import random
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

from pm_dagster_tests.chaos import dispatcher
from pm_dagster_tests.chaos.deployment import JOB, ChaosDeployment
from pm_dagster_tests.chaos.dispatcher import Dispatcher
from pm_dagster_tests.chaos.finishing import settled

SEED = "PROOF_SEED"
_LONGEST_SECONDS = 600.0
_LOOK_SECONDS = 0.05
_REPAIRS = """
INSERT INTO mm_run_plc (cntrt_id, run_sttus_name, wkf_job_id, wkf_job_run_id, file_name, rgstr_file_time)
SELECT 7, 'WAITING', %s, run, 'file.csv', now() AT TIME ZONE 'UTC' FROM unnest(%s) run"""
#: Each hits its call at this share of all calls; between them every kind of lost answer.
_FAULTS: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
    ("run-now", "reset", "before", {}),
    ("run-now", "reset", "after", {}),
    ("run-now", "status", "after", {"status": 503}),
    ("run-now", "status", "before", {"status": 429, "headers": {"Retry-After": "0"}}),
    ("runs/repair", "reset", "before", {}),
    ("runs/repair", "reset", "after", {}),
    ("runs/repair", "status", "after", {"status": 502}),
    ("runs/repair", "status", "before", {"status": 429, "headers": {"Retry-After": "0"}}),
    ("runs/get", "status", "before", {"status": 503}),
    ("runs/get", "truncated", "after", {}),
)
_SHARE = 0.01
_SETTINGS = {
    "PM_SETTLE_SECONDS": "0.5",
    "PM_DISPATCH_LIMIT": "200",
    "PM_CONCURRENCY": "8",
    "PM_CALL_TRIES": "3",
}


@dataclass(frozen=True)
class Course:
    """How it went: dispatches that were started, those killed, and how long all took."""

    started: int
    killed: int
    seconds: float


def seed() -> int:
    """The seed of this process: given by the environment, or new."""
    return int(os.environ.get(SEED) or random.SystemRandom().randrange(10**9))


def fill(deployment: ChaosDeployment, count: int) -> None:
    """So many rows: three fifths new, the others repairs of runs with and without earlier repairs."""
    runs = [deployment.workspace.state.add_run(JOB, repairs=(0, 2)[n % 2]).run_id for n in range(count * 2 // 5)]
    deployment.sql(f"{_REPAIRS} RETURNING run_id", (JOB, runs))
    deployment.add(count - len(runs))
    deployment.settings.update(_SETTINGS)


def set_faults(deployment: ChaosDeployment, chance: random.Random, rows: int) -> None:
    """Let some per cent of the calls go wrong, at places that chance picks."""
    for endpoint, kind, when, details in _FAULTS:
        for place in chance.sample(range(rows), max(1, int(rows * _SHARE))):
            deployment.workspace.faults.add(endpoint, kind, when, skip=place // 2, **details)


def run_crowd(deployment: ChaosDeployment, chance: random.Random, size: int, kills: int) -> Course:
    """Keep ``size`` dispatches running, one of them step by step, and kill ``kills`` of them, until all is done."""
    began = time.monotonic()
    crowd: list[Dispatcher] = []
    killed = 0
    while not settled(deployment):
        assert time.monotonic() < began + _LONGEST_SECONDS, f"not done: {deployment.states()}"
        crowd = [each for each in crowd if _runs(each)]
        if len(crowd) < size:
            deployment.later()
            crowd.append(
                start_stepwise(deployment) if len(deployment.started) % size == size - 1 else deployment.start()
            )
        elif killed < kills and chance.random() < _LOOK_SECONDS * 2:
            chance.choice(crowd).kill()
            killed += 1
        time.sleep(_LOOK_SECONDS)
    for each in crowd:
        each.wait()
    return Course(len(deployment.started), killed, time.monotonic() - began)


def _runs(each: Dispatcher) -> bool:
    if each.alive:
        return True
    each.wait()
    return False


def start_stepwise(deployment: ChaosDeployment) -> Dispatcher:
    """A dispatch in the steps of Dagster's ops, both branches at once, in a process of its own."""
    started = dispatcher.fork(deployment.folder, partial(_stepwise, deployment.environment()))
    deployment.started.append(started)
    return started


def _stepwise(environment: dict[str, str], out: str, err: str) -> None:
    dispatcher.become(environment, out, err)
    import click  # noqa: PLC0415

    from pm_dagster.cli import connections  # noqa: PLC0415 imported in the fork, with its own environment
    from pm_dagster.dispatch.sender import Sender  # noqa: PLC0415
    from pm_dagster.dispatch.service import Dispatch  # noqa: PLC0415
    from pm_dagster.dispatch.worker import Sent  # noqa: PLC0415
    from pm_dagster.errors import ProcessManagerError  # noqa: PLC0415

    call = click.Context(click.Command("stepwise"), obj=connections.Invocation(environment))
    try:
        with call, connections.control_plane(settings := connections.settings()) as control:
            dispatch = Dispatch(control, connections.workspace_runs(settings), settings)
            claimed = dispatch.claim(dispatch.read())
            new, repair = ([entry.entry_id for entry in part] for part in (claimed.new, claimed.repair))
            sender = Sender(dispatch)
            sender.begin()
            try:
                started = sender.start(new)
                looked_up = sender.look_up(repair)
                repaired = sender.repair(looked_up.targets)
                sender.rest()
            finally:
                sender.end()
            dispatch.close(claimed.entries, Sent.of([started.sent, looked_up.sent, repaired.sent]))
    except ProcessManagerError as error:
        raise SystemExit(f"pm: {error}") from None
