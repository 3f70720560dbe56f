"""Re-execution from failure, as the button in the UI does it: another run, another dispatcher, the same ledger."""

from __future__ import annotations

import dagster as dg

from pm_dagster.errors import ConfigurationError
from pm_dagster.orchestration import names
from pm_dagster_tests.orchestration.conftest import CodeLocation

#: Dagster makes the job anew for each run, by calling a function without arguments.
_locations: list[CodeLocation] = []


def process_manager_job() -> dg.JobDefinition:
    """The job over the fakes of the test that runs."""
    return _locations[-1].definitions().resolve_job_def(names.JOB)


def test_it_continues_from_the_ledger_and_repeats_no_call() -> None:
    with dg.DagsterInstance.local_temp() as instance:
        code_location = CodeLocation(instance)
        _locations.append(code_location)
        code_location.database.add(1)
        code_location.database.add(2, previous_run_id=code_location.runs.failed_run())
        code_location.faults["close"] = [ConfigurationError("the column is gone")] * 20
        job = dg.reconstructable(process_manager_job)
        with dg.execute_job(job, instance) as first:
            assert not first.success
        calls = list(code_location.runs.calls)
        assert len(calls) == 3
        code_location.database.alive.clear()
        code_location.faults.clear()
        options = dg.ReexecutionOptions.from_failure(first.run_id, instance)
        with dg.execute_job(job, instance, reexecution_options=options) as again:
            assert again.success
        assert code_location.runs.calls == calls
        assert code_location.database.statuses() == {1: "SCHEDULED", 2: "SCHEDULED"}
