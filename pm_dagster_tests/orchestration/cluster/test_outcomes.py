"""What the asset shows of a run on the cluster, however it ended; in process, over a workspace that speaks HTTP."""

from __future__ import annotations

import json
from typing import Any

import dagster as dg
import pytest

from pm_dagster.definitions import build_definitions
from pm_dagster.dispatch.report import Report, report_line
from pm_dagster.orchestration.metadata import report_metadata
from pm_dagster_tests.orchestration.cluster.deployment import JOB, Deployment, failure, shown


def test_the_names_that_operators_rely_on() -> None:
    definitions = build_definitions()
    job = definitions.resolve_job_def("process_manager_on_cluster")
    node = definitions.get_repository_def().asset_graph.get(dg.AssetKey("process_manager_on_cluster"))
    assert {key.to_user_string() for key in node.parent_keys} == {"mm_run_wait_vw"}
    assert (node.group_name, node.kinds) == ("process_manager", {"databricks", "spark"})
    assert float(job.tags["dagster/max_runtime"]) > 1200
    assert "process_manager/dispatch" not in job.tags


def test_a_run_on_the_cluster_is_a_materialization_with_links_and_times(deployment: Deployment) -> None:
    deployment.add_job(tasks=[{"task_key": "dispatch"}, {"task_key": "tell", "depends_on": [{"task_key": "dispatch"}]}])
    result = deployment.execute()
    metadata = shown(result)
    (run,) = deployment.runs()
    assert metadata["run page"] == f"{deployment.workspace.host}/jobs/{JOB}/runs/{run.run_id}"
    assert (metadata["Databricks job id"], metadata["Databricks run id"]) == (str(JOB), str(run.run_id))
    assert metadata["end"] == "succeeded"
    assert metadata["Databricks run (seconds)"] > 0
    lines = metadata["tasks"].splitlines()
    assert lines[0] == "| task | life cycle | result | duration | page |"
    assert [line.split(" | ")[:3] for line in lines[2:]] == [
        ["| dispatch", "TERMINATED", "SUCCESS"],
        ["| tell", "TERMINATED", "SUCCESS"],
    ]
    assert all(f"/jobs/{JOB}/runs/{task.run_id})" in metadata["tasks"] for task in run.last.tasks)


def test_the_log_says_at_once_where_the_run_is_and_then_how_it_goes(deployment: Deployment) -> None:
    deployment.add_job(pending_seconds=0.1, seconds=0.2)
    result = deployment.execute()
    (run,) = deployment.runs()
    said = [e.user_message for e in deployment.instance.all_logs(result.run_id) if "Databricks run" in e.user_message]
    assert said[0].endswith(f"of job {JOB}: {deployment.workspace.host}/jobs/{JOB}/runs/{run.run_id}")
    assert [line.rpartition(" is ")[2] for line in said[1:4]] == [
        "PENDING (main PENDING)",
        "RUNNING (main RUNNING)",
        "TERMINATED/SUCCESS (main TERMINATED/SUCCESS)",
    ]
    assert "has no report" in said[4]


def test_it_sends_neither_parameters_nor_a_word_about_the_queue(deployment: Deployment) -> None:
    deployment.add_job()
    assert deployment.execute().success
    (entry,) = deployment.workspace.log.entries("run-now")
    assert set(json.loads(entry.body)) == {"job_id", "idempotency_token"}


def test_each_dagster_run_starts_a_run_of_its_own(deployment: Deployment) -> None:
    deployment.add_job()
    assert deployment.execute().success
    assert deployment.execute().success
    assert len(deployment.runs()) == 2


def test_a_real_program_on_the_cluster_brings_its_numbers_under_the_usual_keys(deployment: Deployment) -> None:
    numbers = report_line(Report(read=7, scheduled=5, left=1, calls=9, api_seconds=0.5, seconds=2.0, rescued=1))
    deployment.deploy(f"print('reading')\nprint({numbers!r})\n")
    metadata = shown(deployment.execute(job_name="deployed"))
    assert {key: metadata[key] for key in ("read", "scheduled", "left for the next dispatch", "API calls")} == {
        "read": 7,
        "scheduled": 5,
        "left for the next dispatch": 1,
        "API calls": 9,
    }
    assert (metadata["new/accepted"], metadata["repair/quarantined"]) == (0, 0)
    assert (metadata["API share of time"], metadata["seconds"], metadata["taken over"]) == (0.25, 2.0, 1)


def test_a_real_program_that_fails_says_why(deployment: Deployment) -> None:
    source = "print('CRITICAL the database does not answer')\nraise RuntimeError('the dispatch could not run')\n"
    deployment.deploy(source)
    description, metadata = failure(deployment.execute(job_name="deployed"))
    assert "failed (INTERNAL_ERROR/FAILED): Task main failed with message" in description
    assert description.endswith("In task main: RuntimeError: the dispatch could not run")
    assert metadata["error of main"] == "RuntimeError: the dispatch could not run"
    assert "CRITICAL the database does not answer" in metadata["last lines of main"]
    assert metadata["run page"].startswith(deployment.workspace.host)
    assert "| main | TERMINATED | FAILED |" in metadata["tasks"]


def test_the_keys_are_those_of_a_dispatch_here() -> None:
    numbers = report_metadata(Report(seconds=1.0).as_json())
    assert set(numbers) >= {
        "new/accepted",
        "new/adopted",
        "repair/deferred",
        "read",
        "scheduled",
        "API calls throttled",
    }
    assert numbers["API share of time"] == 0.0


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        ({}, {}),
        ({"read": "7", "new": [1], "scheduled": True, "calls": None, "seconds": "soon"}, {}),
        ({"read": float("nan"), "scheduled": float("inf"), "left": 2}, {"left for the next dispatch": 2}),
        ({"new": {"accepted": 3, "deferred": {}}}, {"new/accepted": 3}),
        ({"api_seconds": 9, "seconds": 0}, {"seconds": 0, "API share of time": 0.0}),
        ({"api_seconds": 9, "seconds": 2}, {"seconds": 2, "API share of time": 1.0}),
    ],
)  # fmt: skip
def test_what_is_no_number_is_left_out(report: dict[str, Any], expected: dict[str, float]) -> None:
    assert report_metadata(report) == expected


@pytest.mark.parametrize(
    ("outcome", "words"),
    [
        ("fail", "failed (INTERNAL_ERROR/FAILED)"),
        ("timeout", "timed out (TERMINATED/TIMEDOUT)"),
        ("cancel", "was cancelled (TERMINATED/CANCELED)"),
        ("internal_error", "could not be executed by the workspace (INTERNAL_ERROR"),
        ("succeed_with_failures", "succeeded with failures (TERMINATED/SUCCESS_WITH_FAILURES)"),
    ],
)
def test_every_other_end_is_a_failure_in_its_own_words(deployment: Deployment, outcome: str, words: str) -> None:
    deployment.add_job(outcome=outcome)
    description, metadata = failure(deployment.execute())
    assert words in description
    assert metadata["Databricks run id"] == str(deployment.runs()[0].run_id)
    assert "| main |" in metadata["tasks"]


@pytest.mark.parametrize("with_result", [True, False])
def test_a_run_that_was_skipped_is_said_to_be_with_the_one_in_its_way(
    deployment: Deployment,
    with_result: bool,  # noqa: FBT001
) -> None:
    deployment.workspace.switches.skipped_result = with_result
    deployment.add_job(seconds=None)
    other, _ = deployment.workspace.state.start_run(JOB)
    description, metadata = failure(deployment.execute())
    link = f"{deployment.workspace.host}/jobs/{JOB}/runs/{other.run_id}"
    assert f"was skipped because another run of the job was active: run {other.run_id}, {link}" in description
    assert "| main | SKIPPED |" in metadata["tasks"]
    assert other.last.active


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.05, "ended in a state that Process Manager does not know"), (None, "did not end within 0.3 s")],
)
def test_states_that_nobody_knows_are_no_success(deployment: Deployment, seconds: float | None, words: str) -> None:
    deployment.workspace.switches.unknown_states = True
    deployment.add_job(seconds=seconds)
    description, metadata = failure(deployment.execute(deadline_seconds=0.3))
    assert words in description
    assert "| main | unknown |" in metadata["tasks"]


def test_the_deadline_cancels_the_databricks_run(deployment: Deployment) -> None:
    deployment.add_job(seconds=None)
    result = deployment.execute(deadline_seconds=0.2)
    description, metadata = failure(result)
    assert "it was cancelled (last seen as TERMINATED/CANCELED)" in description
    assert metadata["end"] == "did not end in time"
    assert deployment.runs()[0].last.result == "CANCELED"
    assert "Cancelling Databricks run" in deployment.logged(result)
