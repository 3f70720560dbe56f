"""Which runs are ended as dead, and which that look like it are not."""

from __future__ import annotations

import pytest

from pm_dagster.dispatch.ports import SignOfLife
from pm_dagster.orchestration.dead_runs import RunFacts, Stage, Worker, verdict

_DIED = SignOfLife(alive=False, left=False, seconds_ago=1000)
_LEFT = SignOfLife(alive=False, left=True, seconds_ago=1000)
_LIVES = SignOfLife(alive=True, left=False, seconds_ago=1000)


def _died(seconds: float) -> SignOfLife:
    return SignOfLife(alive=False, left=False, seconds_ago=seconds)


@pytest.mark.parametrize(
    ("run", "sign"),
    [
        pytest.param(RunFacts(Stage.STARTED, 9999), _LIVES, id="its dispatcher lives, however silent"),
        pytest.param(RunFacts(Stage.CANCELING, 9999), _LIVES, id="it is being cancelled, and lives"),
        pytest.param(RunFacts(Stage.STARTED, 9999, Worker.THERE), None, id="its worker cannot reach the database"),
        pytest.param(RunFacts(Stage.STARTED, 9999, Worker.THERE), _DIED, id="its worker lost its connection"),
        pytest.param(RunFacts(Stage.STARTING, 9999, Worker.THERE), None, id="its worker still imports"),
        pytest.param(RunFacts(Stage.QUEUED, 99_999), None, id="it waits in a long queue"),
        pytest.param(RunFacts(Stage.QUEUED, 60, queue_is_served=False), None, id="the coordinator was just changed"),
        pytest.param(RunFacts(Stage.STARTING, 900), None, id="a machine is made for it"),
        pytest.param(RunFacts(Stage.STARTING, 20, Worker.GONE), None, id="its worker was asked for just now"),
        pytest.param(RunFacts(Stage.STARTED, 60), None, id="it tries to reach the database"),
        pytest.param(RunFacts(Stage.STARTED, 9999), _died(3), id="its connection broke a moment ago"),
        pytest.param(RunFacts(Stage.STARTED, 9999), _died(14), id="it cannot be asked whether its worker is gone"),
        pytest.param(RunFacts(Stage.STARTED, 9999, Worker.GONE), _died(7), id="an orphan, whose connection broke"),
        pytest.param(
            RunFacts(Stage.STARTED, 60, Worker.GONE, steps_apart=True), _DIED, id="an orphan of several steps"
        ),
        pytest.param(RunFacts(Stage.STARTED, 3), _DIED, id="it says something else of itself"),
        pytest.param(RunFacts(Stage.STARTED, 60), _LEFT, id="it is between two processes, or about to finish"),
        pytest.param(RunFacts(Stage.STARTED, 60, steps_apart=True), _died(60), id="a step's process died, not the run"),
    ],
)
def test_a_run_that_may_live_is_not_ended(run: RunFacts, sign: SignOfLife | None) -> None:
    assert not verdict(run, sign).dead


@pytest.mark.parametrize(
    ("run", "sign", "why"),
    [
        (RunFacts(Stage.STARTED, 40), _died(16), "its dispatcher died"),
        (RunFacts(Stage.STARTED, 9, Worker.GONE), _died(9), "its dispatcher and its worker process died"),
        (RunFacts(Stage.CANCELING, 40), _died(16), "its dispatcher died"),
        (RunFacts(Stage.STARTING, 40), _died(16), "its dispatcher died"),
        (RunFacts(Stage.STARTED, 130, steps_apart=True), _DIED, "its dispatcher died"),
        (RunFacts(Stage.STARTED, 130), _LEFT, "its dispatcher signed off from the ledger"),
        (RunFacts(Stage.STARTED, 130), None, "it never registered"),
        (RunFacts(Stage.STARTED, 31, Worker.GONE), None, "it never registered"),
        (RunFacts(Stage.STARTING, 31, Worker.GONE), None, "its worker process died before it started"),
        (RunFacts(Stage.STARTING, 1201), None, "it is starting"),
        (RunFacts(Stage.QUEUED, 1201, queue_is_served=False), None, "no run queue starts it"),
    ],
)
def test_a_dead_run_is_told_with_the_reason(run: RunFacts, sign: SignOfLife | None, why: str) -> None:
    found = verdict(run, sign)
    assert found.dead
    assert found.why.startswith(why)
    assert "its last sign of life is" in found.why


def test_what_is_doubtful_is_told_with_the_limit() -> None:
    assert not verdict(RunFacts(Stage.STARTED, 3), None).doubtful
    found = verdict(RunFacts(Stage.STARTED, 50), None)
    assert found.doubtful
    assert "its last sign of life is 50 s old (the run is ended after 120 s)" in found.why
    assert "ended after" not in verdict(RunFacts(Stage.QUEUED, 500), None).why
