"""What every ControlPlane promises about a row that comes back after it was closed."""

from __future__ import annotations

from pm_dagster_tests.contracts.steps import claim_one, send
from pm_dagster_tests.contracts.worlds import World


def test_an_entry_knows_the_runs_of_the_rows_earlier_generations(world: World) -> None:
    run_id = world.add()
    control = world.dispatcher()
    first = claim_one(control)
    assert first.earlier_run_ids == ()
    send(control, first)
    control.close([first.entry_id])
    world.set_status(run_id, "WAITING")
    again = claim_one(control)
    assert (again.generation, again.earlier_run_ids) == (2, (5,))


def test_an_entry_knows_nothing_of_other_rows(world: World) -> None:
    world.add(age=10)
    control = world.dispatcher()
    first = claim_one(control)
    send(control, first)
    control.close([first.entry_id])
    world.add()
    assert claim_one(control).earlier_run_ids == ()
