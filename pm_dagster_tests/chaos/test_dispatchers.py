"""Several dispatches at once, killed and started again at random, with lost answers and 429s: nothing twice or lost."""

from __future__ import annotations

import random

import pytest

from pm_dagster_tests.chaos.deployment import ChaosDeployment
from pm_dagster_tests.chaos.finishing import story
from pm_dagster_tests.chaos.many import SEED, fill, run_crowd, seed, set_faults
from pm_dagster_tests.chaos.records import record


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


@pytest.mark.chaos
@pytest.mark.parametrize("size", [2, 4, 8])
def test_five_thousand_rows(chaos: ChaosDeployment, size: int) -> None:
    prove(chaos, size, rows=5000, kills=40)
