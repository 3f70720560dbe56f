"""Several dispatches at once, killed and started again at random, with lost answers and 429s: nothing twice or lost."""

from __future__ import annotations

import random
import signal
import time

import pytest

from pm_dagster_tests.chaos.deployment import ChaosDeployment, Moment
from pm_dagster_tests.chaos.finishing import story
from pm_dagster_tests.chaos.many import SEED, Course, fill, run_crowd, seed, set_faults
from pm_dagster_tests.chaos.records import record
from pm_dagster_tests.chaos.wire import When


def prove(deployment: ChaosDeployment, size: int, rows: int, kills: int) -> None:
    """Empty the view with a crowd, and judge."""
    number = seed()
    chance = random.Random(number)  # noqa: S311 chance for a test, not a secret
    fill(deployment, rows)
    set_faults(deployment, chance, rows)
    course = run_crowd(deployment, chance, size, kills)
    verdict = deployment.verdict(may_fail=())
    assert verdict.clean, f"{SEED}={number}: {verdict}, {course}\n{story(deployment)}"
    assert verdict.rows == rows
    counts = {"rows": rows, "dispatchers": size, **verdict.counts}
    figures = {"seconds": course.seconds, "started": course.started, "killed": course.killed}
    record("dispatchers", f"{size} at once, {rows} rows", counts, figures)


def test_two_at_once_and_a_few_kills(chaos: ChaosDeployment) -> None:
    prove(chaos, 2, rows=150, kills=3)


_LIMITS = {"run-now": 20.0, "runs/repair": 5.0, "runs/get": 100.0}
#: Calls that are answered 429, as a share of all: what kills and starts of dispatchers may cost.
_MOST_THROTTLED = 0.005


def under_limits(deployment: ChaosDeployment, size: int, rows: int, kills: int) -> tuple[Course, float]:
    """Empty the view with a crowd under the limits of a workspace; gives the course and the share of 429s."""
    number = seed()
    chance = random.Random(number)  # noqa: S311 chance for a test, not a secret
    fill(deployment, rows)
    deployment.settings |= _RATES | {"PM_DISPATCH_LIMIT": "60"}
    deployment.workspace.limits.set(_LIMITS, retry_after=1)
    course = run_crowd(deployment, chance, size, kills)
    verdict = deployment.verdict(may_fail=())
    assert verdict.clean, f"{SEED}={number}: {verdict}, {course}\n{story(deployment)}"
    assert verdict.rows == rows
    calls = deployment.workspace.log.entries()
    throttled = sum(call.status == 429 for call in calls) / len(calls)
    assert throttled <= _MOST_THROTTLED, f"{SEED}={number}: {course}"
    counts = {"rows": rows, "dispatchers": size, **verdict.counts}
    figures = {"seconds": course.seconds, "started": course.started, "killed": course.killed, "429 %": 100 * throttled}
    record("dispatchers", f"{size} at once, {rows} rows, under limits", counts, figures)
    return course, throttled


_RATES = {"PM_RATE_RUN_NOW": "20", "PM_RATE_REPAIR": "5", "PM_RATE_GET_RUN": "100"}


@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_as_it_takes_the_budget(chaos: ChaosDeployment, when: When) -> None:
    """It has, or would have had, the whole budget, and started nothing: the next one waits for a second at most."""
    rows = chaos.add(10)
    chaos.settings |= _RATES
    chaos.workspace.limits.set(_LIMITS, retry_after=1)
    doom = chaos.kill_at(Moment("UPDATE process_manager.api_budget", "commit", when))
    assert chaos.dispatch().wait() == -signal.SIGKILL
    assert doom.met == 1
    assert chaos.workspace.log.count("run-now") == 0
    chaos.forget_the_dead()
    began = time.monotonic()
    assert chaos.dispatch().wait() == 0
    assert time.monotonic() - began < 5.0
    verdict = chaos.verdict(may_fail=())
    assert verdict.clean, f"{verdict}\n{story(chaos)}"
    assert verdict.rows == len(rows)
    assert chaos.workspace.log.count("run-now") == len(rows)


def test_two_at_once_under_limits(chaos: ChaosDeployment) -> None:
    """One of them is killed, with what it had reserved."""
    course, throttled = under_limits(chaos, 2, rows=60, kills=1)
    assert course.killed == 1
    assert throttled == 0


@pytest.mark.chaos
@pytest.mark.parametrize("size", [2, 4, 8])
def test_three_hundred_rows_under_limits(chaos: ChaosDeployment, size: int) -> None:
    under_limits(chaos, size, rows=300, kills=6)


@pytest.mark.chaos
@pytest.mark.parametrize("size", [2, 4, 8])
def test_five_thousand_rows(chaos: ChaosDeployment, size: int) -> None:
    prove(chaos, size, rows=5000, kills=40)
