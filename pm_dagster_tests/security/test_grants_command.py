"""`pm grants` as a person uses it: run what it prints, then work as that role."""

from __future__ import annotations

import pytest

from pm_dagster.sandbox.workspace import LocalWorkspace
from pm_dagster_tests.cli.shell import JOB, Shell

ROLE = "a dispatcher's role"


@pytest.mark.slow
def test_what_is_printed_is_enough_for_every_command(ledger_url: str) -> None:
    with LocalWorkspace() as workspace:
        workspace.state.add_job("ingest", job_id=JOB, seconds=30.0, max_concurrent_runs=1000)
        world = Shell(ledger_url, workspace)
        world.sql(f'CREATE ROLE "{ROLE}" LOGIN')
        try:
            _work_as_role(world)
        finally:
            world.sql(f'DROP OWNED BY "{ROLE}"')
            world.sql(f'DROP ROLE "{ROLE}"')


def _work_as_role(world: Shell) -> None:
    before = world.pm("dispatch", PM_POSTGRES_USER=ROLE)
    assert (before.returncode, "lacks a privilege" in before.stderr) == (1, True), before.stderr
    printed = world.pm("grants", "--role", ROLE)
    assert printed.returncode == 0, printed.stderr
    world.sql(printed.stdout)
    (refused,) = world.add(job_id=0)
    world.add(2)
    world.add_repairs(1)
    world.settings["PM_POSTGRES_USER"] = ROLE
    assert world.json("doctor")["ok"]
    world.json("plan")
    assert world.json("dispatch")["scheduled"] == 3
    assert world.json("redrive", str(refused))["redriven"] == [refused]
    world.json("explain", str(refused))
    assert world.json("status")["backlog"]["ready"] == 1
