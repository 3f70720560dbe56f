"""What every ControlPlane promises about a row that comes back after it was closed."""

from __future__ import annotations

from pm_dagster_tests.contracts.control_table import ControlTable
from pm_dagster_tests.contracts.steps import claim_one, send


def test_an_entry_knows_the_runs_of_the_rows_earlier_generations(table: ControlTable) -> None:
    run_id = table.add()
    control = table.dispatcher()
    first = claim_one(control)
    assert first.earlier_run_ids == ()
    send(control, first)
    control.close([first.entry_id])
    table.set_status(run_id, "WAITING")
    again = claim_one(control)
    assert (again.generation, again.earlier_run_ids) == (2, (5,))


def test_an_entry_knows_nothing_of_other_rows(table: ControlTable) -> None:
    table.add(age=10)
    control = table.dispatcher()
    first = claim_one(control)
    send(control, first)
    control.close([first.entry_id])
    table.add()
    assert claim_one(control).earlier_run_ids == ()
