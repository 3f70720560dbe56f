"""The instruments themselves: a front that acts exactly, a dispatch that dies exactly, an oracle that can see."""

from __future__ import annotations

from pm_dagster_tests.chaos.deployment import ChaosDeployment


def test_a_dispatch_through_the_front(chaos: ChaosDeployment) -> None:
    chaos.add(2)
    chaos.add_repair(repairs=1)
    done = chaos.dispatch()
    assert done.wait() == 0, done.err
    assert set(chaos.statuses().values()) == {"SCHEDULED"}
    verdict = chaos.verdict()
    assert verdict.clean, str(verdict)
    assert (verdict.rows, verdict.starts) == (3, 3)
