"""Later dispatches, until everything is done: what the matrix's cells and the tests of Postgres have in common.

Put here: when a deployment is done. Keep out: what must be true of it then (``oracle.py``).
"""

from __future__ import annotations

from typing import Any

from pm_dagster_tests.chaos.deployment import ChaosDeployment


def settled(deployment: ChaosDeployment) -> bool:
    """Whether no row waits and no entry is open."""
    waiting = "WAITING" in deployment.statuses().values()
    return not waiting and deployment.sql("SELECT count(*) FROM process_manager.entry WHERE open") == [(0,)]


def finish(deployment: ChaosDeployment, *, at_most: int = 5, **settings: str) -> int:
    """Dispatch until all is done, with the ledger's waits run down; gives how many dispatches it took."""
    for count in range(at_most):
        if settled(deployment):
            return count
        deployment.later()
        deployment.dispatch(**settings)
    return at_most


def assert_clean(deployment: ChaosDeployment, **allowed: Any) -> None:  # noqa: ANN401 the options of Oracle.verdict
    """Every promise was kept, or the story of what happened."""
    verdict = deployment.verdict(**allowed)
    assert verdict.clean, f"{verdict}\n{story(deployment)}"


def story(deployment: ChaosDeployment) -> str:
    """For a test that failed: the last of what the ledger was told, and what the dispatches said."""
    told = deployment.sql("""
        SELECT e.run_id, v.dispatcher_id, v.kind, coalesce(v.call, ''), v.detail FROM process_manager.event v
        LEFT JOIN process_manager.entry e USING (entry_id) ORDER BY event_id DESC LIMIT 200""")
    lines = [" ".join(str(part) for part in line) for line in reversed(told)]
    return "\n".join([*lines, *(process.err[-2000:] for process in deployment.started)])
