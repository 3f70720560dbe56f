"""Pauses that the workspace asks for: kept, and never sat out by a dispatch that cannot use what comes after."""

from __future__ import annotations

from pm_dagster_tests.chaos.deployment import ChaosDeployment


def test_a_pause_beyond_the_deadline_ends_the_dispatch(chaos: ChaosDeployment) -> None:
    """One call at a time, so that the rows behind the throttled one have not been sent yet."""
    chaos.add(4)
    chaos.workspace.faults.add("run-now", "status", count=1, status=429, headers={"retry-after": "86400"})
    first = chaos.start(PM_CONCURRENCY="1", PM_DEADLINE_SECONDS="600")
    # Without the end that is tested, it would take the ten minutes.
    assert first.wait(120) == 0
    assert chaos.states() == ["DEFERRED", "CLAIMED", "CLAIMED", "CLAIMED"]
    chaos.forget_the_dead()
    chaos.later()
    assert chaos.dispatch().wait() == 0
    verdict = chaos.verdict(may_fail=())
    assert verdict.clean, str(verdict)


def test_without_a_pace_a_workspace_that_throttles_is_not_hammered(chaos: ChaosDeployment) -> None:
    """A Retry-After of 0, or a date that our clock takes for past, is no leave to ask again at once."""
    chaos.add()
    chaos.workspace.faults.add("run-now", "status", count=None, status=429, headers={"retry-after": "0"})
    assert chaos.dispatch(PM_RATE_RUN_NOW="0", PM_DEADLINE_SECONDS="3").wait() == 0
    assert chaos.workspace.log.count("run-now") <= 5
    chaos.workspace.faults.clear()
    chaos.forget_the_dead()
    chaos.later()
    assert chaos.dispatch().wait() == 0
    verdict = chaos.verdict(may_fail=())
    assert verdict.clean, str(verdict)
