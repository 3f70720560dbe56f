"""Re-execution from failure, as the button in the UI does it: another run, another dispatcher, the same ledger."""

from __future__ import annotations

import dagster as dg

from pm_dagster.errors import ConfigurationError
from pm_dagster_tests.orchestration.conftest import CodeLocation, process_manager_job


def test_it_continues_from_the_ledger_and_repeats_no_call(stored: CodeLocation) -> None:
    stored.database.add(1)
    stored.database.add(2, previous_run_id=stored.runs.failed_run())
    stored.faults["close"] = [ConfigurationError("the column is gone")] * 20
    job = dg.reconstructable(process_manager_job)
    with dg.execute_job(job, stored.instance) as first:
        assert not first.success
    calls = list(stored.runs.calls)
    assert len(calls) == 3
    stored.database.alive.clear()
    stored.faults.clear()
    options = dg.ReexecutionOptions.from_failure(first.run_id, stored.instance)
    with dg.execute_job(job, stored.instance, reexecution_options=options) as again:
        assert again.success
    assert stored.runs.calls == calls
    assert stored.database.statuses() == {1: "SCHEDULED", 2: "SCHEDULED"}
