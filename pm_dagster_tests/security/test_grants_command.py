"""`pm grants` as a person uses it: run what it prints, then work as that role."""

from __future__ import annotations

import pytest

from pm_dagster_tests.cli.shell import Shell, workspace_with_a_job

ROLE = "a dispatcher's role"


@pytest.mark.slow
def test_what_is_printed_is_enough_for_every_command(ledger_url: str) -> None:
    with workspace_with_a_job() as workspace:
        shell = Shell(ledger_url, workspace)
        shell.sql(f'CREATE ROLE "{ROLE}" LOGIN')
        try:
            _work_as_role(shell)
        finally:
            shell.sql(f'DROP OWNED BY "{ROLE}"')
            shell.sql(f'DROP ROLE "{ROLE}"')


def _work_as_role(shell: Shell) -> None:
    before = shell.pm("dispatch", PM_POSTGRES_USER=ROLE)
    assert (before.returncode, "lacks a privilege" in before.stderr) == (1, True), before.stderr
    printed = shell.pm("grants", "--role", ROLE)
    assert printed.returncode == 0, printed.stderr
    shell.sql(printed.stdout)
    (refused,) = shell.add(job_id=0)
    shell.add(2)
    shell.add_repairs(1)
    shell.settings["PM_POSTGRES_USER"] = ROLE
    assert shell.json("doctor")["ok"]
    shell.json("plan")
    assert shell.json("dispatch")["scheduled"] == 3
    assert shell.json("redrive", str(refused))["redriven"] == [refused]
    shell.json("explain", str(refused))
    assert shell.json("status")["backlog"]["ready"] == 1
