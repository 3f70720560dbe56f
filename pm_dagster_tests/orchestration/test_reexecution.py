"""Re-execution from failure, as the button in the UI does it: another run, another dispatcher, the same ledger."""

from __future__ import annotations

import dagster as dg

from pm_dagster.errors import ConfigurationError
from pm_dagster.orchestration import names
from pm_dagster_tests.orchestration.conftest import World

#: Dagster makes the job anew for each run, by calling a function without arguments.
_worlds: list[World] = []


def process_manager_job() -> dg.JobDefinition:
    """The job over the fakes of the test that runs."""
    return _worlds[-1].definitions().resolve_job_def(names.JOB)


def test_it_continues_from_the_ledger_and_repeats_no_call() -> None:
    with dg.DagsterInstance.local_temp() as instance:
        world = World(instance)
        _worlds.append(world)
        world.database.add(1)
        world.database.add(2, previous_run_id=world.runs.failed_run())
        world.faults["close"] = [ConfigurationError("the column is gone")] * 4
        job = dg.reconstructable(process_manager_job)
        with dg.execute_job(job, instance) as first:
            assert not first.success
        calls = list(world.runs.calls)
        assert len(calls) == 3
        world.database.alive.clear()
        options = dg.ReexecutionOptions.from_failure(first.run_id, instance)
        with dg.execute_job(job, instance, reexecution_options=options) as again:
            assert again.success
        assert world.runs.calls == calls
        assert world.database.statuses() == {1: "SCHEDULED", 2: "SCHEDULED"}
