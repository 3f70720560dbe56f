"""The graph over fakes: what becomes of rows, and what a dispatch says about them."""

from __future__ import annotations

import dagster as dg
import pandas as pd
import pytest

from pm_dagster.dispatch.model import Call, Outcome
from pm_dagster.dispatch.service import Dispatch
from pm_dagster.orchestration import names
from pm_dagster_tests.fakes.control_plane import InMemoryControlPlane
from pm_dagster_tests.orchestration.conftest import CodeLocation

_OPS = {"partition_waiting_jobs", "trigger_new_jobs", "fetch_latest_repair_ids", "repair_job_runs", "mark_scheduled"}


def test_the_names_that_operators_and_the_bundle_rely_on(code_location: CodeLocation) -> None:
    definitions = code_location.definitions()
    repository = definitions.get_repository_def()
    job = definitions.resolve_job_def("process_manager")
    assert {key.to_user_string() for key in repository.asset_graph.get_all_asset_keys()} == {
        "mm_run_wait_vw",
        "waiting_jobs",
        "dispatched_jobs",
        "process_manager_on_cluster",
    }
    assert [sensor.name for sensor in repository.sensor_defs] == ["waiting_jobs_sensor"]
    assert [schedule.name for schedule in repository.schedule_defs] == ["process_manager_schedule"]
    assert {key.name for key in repository.asset_graph.asset_check_keys} == {"no_quarantined_rows"}
    assert {node.name for node in job.graph.node_named("dispatched_jobs").definition.nodes} == _OPS  # type: ignore[attr-defined]
    assert job.tags["dagster/max_runtime"] == "900"


def test_it_starts_new_runs_and_repairs_failed_ones(code_location: CodeLocation) -> None:
    failed = code_location.runs.failed_run(repairs=2)
    code_location.database.add(1)
    code_location.database.add(2**60 + 1, previous_run_id=failed)
    result = code_location.dispatch()
    assert result.success
    assert code_location.database.statuses() == {1: "SCHEDULED", 2**60 + 1: "SCHEDULED"}
    assert (code_location.runs.count(Call.RUN_NOW), code_location.runs.count(Call.REPAIR)) == (1, 1)
    assert len(code_location.runs.runs[failed].repairs) == 3


def test_its_metadata_are_numbers_to_plot_and_a_table_with_links(code_location: CodeLocation) -> None:
    code_location.database.add(1)
    code_location.database.add(2, job_id=99)
    result = code_location.dispatch()
    metadata = code_location.metadata(result)
    assert metadata["new/accepted"] == 1
    assert metadata["new/quarantined"] == 1
    assert metadata["scheduled"] == 1
    assert metadata["oldest waiting (seconds)"] >= 60.0
    assert 0.0 <= metadata["API share of time"] <= 1.0
    assert "https://workspace.example/#job/7/run/" in metadata["rows"]
    assert code_location.metadata(result, names.WAITING_JOBS)["dagster/row_count"] == 2


def test_the_check_warns_of_rows_refused_for_good(code_location: CodeLocation) -> None:
    code_location.database.add(1, job_id="not | a <number>")
    result = code_location.dispatch()
    (check,) = result.get_asset_check_evaluations()
    assert result.success
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert "not a whole number" in str(check.metadata["rows"].value)
    assert code_location.database.statuses() == {1: "FAILED"}


def test_it_is_content_with_nothing_to_do(code_location: CodeLocation) -> None:
    result = code_location.dispatch()
    (check,) = result.get_asset_check_evaluations()
    assert result.success
    assert check.passed
    assert code_location.metadata(result)["scheduled"] == 0


def test_the_launchpad_limits_what_one_dispatch_takes(code_location: CodeLocation) -> None:
    for run_id in (1, 2, 3):
        code_location.database.add(run_id)
    code_location.dispatch(run_config={"ops": {"waiting_jobs": {"config": {"limit": 2}}}})
    assert code_location.database.statuses() == {1: "SCHEDULED", 2: "SCHEDULED", 3: "WAITING"}


def test_the_value_of_the_asset_keeps_every_digit(code_location: CodeLocation) -> None:
    code_location.database.add(2**60 + 1)
    frame: pd.DataFrame = code_location.dispatch().asset_value("dispatched_jobs")
    assert list(frame["run_id"]) == [2**60 + 1]
    assert frame["databricks_run_id"].iloc[0] in code_location.runs.runs


@pytest.mark.parametrize("path", ["ops", "one pass"])
def test_a_run_of_another_job_is_told_with_its_own_link(code_location: CodeLocation, path: str) -> None:
    """The look-up is one op and the repair another; what the first one learned is told all the same."""
    other = code_location.runs.failed_run(job_id=8)
    own = code_location.runs.failed_run()
    code_location.runs.runs[other].page_url = "https://workspace.example/jobs/8/runs/its-own"
    code_location.runs.runs[own].page_url = "https://workspace.example/jobs/7/runs/not-asked-for"
    code_location.database.add(1, previous_run_id=other)
    code_location.database.add(2, previous_run_id=own)
    if path == "ops":
        assert code_location.dispatch().success
    else:
        Dispatch(
            InMemoryControlPlane(code_location.database, code_location.settings),
            code_location.runs,
            code_location.settings,
        ).run()
    assert code_location.database.statuses() == {1: "SCHEDULED", 2: "SCHEDULED"}
    first, second = (code_location.database.newest(run_id) for run_id in (1, 2))
    assert first is not None
    assert second is not None
    assert (first.outcome, first.accepted_run_id, first.accepted_repair_id) == (
        Outcome.ACCEPTED,
        other,
        code_location.runs.runs[other].repairs[-1],
    )
    assert code_location.database.rows[1].message == first.reason
    assert first.reason.endswith("; the run is of job 8, the row names job 7")
    assert first.page_url == "https://workspace.example/jobs/8/runs/its-own"
    assert "the row names job" not in second.reason
    assert second.page_url == f"https://workspace.example/#job/7/run/{own}"
