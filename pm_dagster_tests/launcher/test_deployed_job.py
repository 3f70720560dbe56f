"""Which job is meant, and what the states of its run mean."""

from __future__ import annotations

import pytest

from pm_dagster.dispatch.model import RunSnapshot
from pm_dagster.errors import ConfigurationError
from pm_dagster.launcher.deployed_job import DeployedJob, DeployedRun, End, TaskRun, choose_job, end_of, token_of
from pm_dagster_tests.fakes.deployed_jobs import NAME


def seen(
    life: str | None, result: str | None = None, status: str | None = None, code: str | None = None
) -> RunSnapshot:
    return RunSnapshot(7, 1, life, result, status, code)


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        ([NAME], 1),
        ([f"{NAME} ", NAME], 2),
        (["process_manager", NAME, "PROCESS_MANAGER"], 2),
    ],
)
def test_the_job_is_the_one_with_exactly_this_name(names: list[str], chosen: int) -> None:
    found = [DeployedJob(number, name, "x") for number, name in enumerate(names, 1)]
    assert choose_job(found, NAME) == chosen


def test_several_jobs_of_one_name_are_refused_with_their_ids_and_creators() -> None:
    found = [DeployedJob(11, NAME, "ann"), DeployedJob(12, NAME, ""), DeployedJob(13, NAME.lower(), "bob")]
    with pytest.raises(ConfigurationError) as caught:
        choose_job(found, NAME)
    text = str(caught.value)
    assert "2 Databricks jobs are called 'Process_Manager'" in text
    assert "job_id 11, created by ann" in text
    assert "job_id 12, created by somebody unknown" in text
    assert "Set job_id" in text
    assert "13" not in text


@pytest.mark.parametrize(("found", "hint"), [([], "Deploy the bundle"), ([DeployedJob(3, "process_manager", "")], "3")])
def test_no_job_of_that_name_says_what_to_do(found: list[DeployedJob], hint: str) -> None:
    with pytest.raises(ConfigurationError, match="no Databricks job") as caught:
        choose_job(found, NAME)
    assert hint in str(caught.value)
    assert "job_id" in str(caught.value)


def test_hundreds_of_jobs_of_one_name_do_not_fill_the_page() -> None:
    with pytest.raises(ConfigurationError) as caught:
        choose_job([DeployedJob(number, NAME, "x") for number in range(1, 500)], NAME)
    assert "and 479 more" in str(caught.value)
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize(
    ("run", "end"),
    [
        (seen("PENDING"), None),
        (seen("QUEUED"), None),
        (seen("RUNNING"), None),
        (seen("TERMINATING", "CANCELED"), None),
        (seen("WAITING_FOR_RETRY"), None),
        (seen(None), None),
        (seen("HIBERNATING"), End.UNKNOWN),
        (seen(None, status="RUNNING"), None),
        (seen("TERMINATED", "SUCCESS"), End.SUCCEEDED),
        (seen(None, None, "TERMINATED", "SUCCESS"), End.SUCCEEDED),
        (seen("TERMINATED", "SUCCESS_WITH_FAILURES"), End.SUCCEEDED_WITH_FAILURES),
        (seen("TERMINATED", None, code="SUCCESS_WITH_FAILURES"), End.SUCCEEDED_WITH_FAILURES),
        (seen("INTERNAL_ERROR", "FAILED"), End.FAILED),
        (seen("TERMINATED", "FAILED"), End.FAILED),
        (seen("TERMINATED", "UPSTREAM_FAILED"), End.FAILED),
        (seen("INTERNAL_ERROR", None, "TERMINATED", "RUN_EXECUTION_ERROR"), End.FAILED),
        (seen("INTERNAL_ERROR"), End.INTERNAL_ERROR),
        (seen("INTERNAL_ERROR", None, "TERMINATED", "CLUSTER_ERROR"), End.INTERNAL_ERROR),
        (seen("TERMINATED", "TIMEDOUT"), End.TIMED_OUT),
        (seen("INTERNAL_ERROR", "TIMEDOUT"), End.TIMED_OUT),
        (seen("TERMINATED", "CANCELED"), End.CANCELED),
        (seen("TERMINATED", None, code="USER_CANCELED"), End.CANCELED),
        (seen("SKIPPED", "MAXIMUM_CONCURRENT_RUNS_REACHED"), End.SKIPPED),
        (seen("TERMINATED", "MAXIMUM_CONCURRENT_RUNS_REACHED"), End.SKIPPED),
        (seen("SKIPPED", None), End.SKIPPED),
        (seen("SKIPPED", None, code="SKIPPED"), End.SKIPPED),
        (seen("SKIPPED", None, code="MAX_CONCURRENT_RUNS_EXCEEDED"), End.SKIPPED),
        (seen(None, None, "TERMINATED", "MAX_CONCURRENT_RUNS_EXCEEDED"), End.SKIPPED),
        (seen("SKIPPED", None, code="DISABLED"), End.NEVER_RAN),
        (seen("SKIPPED", "DISABLED"), End.NEVER_RAN),
        (seen("TERMINATED", None, code="MAX_JOB_QUEUE_SIZE_EXCEEDED"), End.NEVER_RAN),
        (seen("TERMINATED", "EXCLUDED"), End.NEVER_RAN),
        (seen("TERMINATED", None), End.UNKNOWN),
        (seen("TERMINATED", "ENLIGHTENED"), End.UNKNOWN),
        (seen(None, None, "TERMINATED", "A_NEW_CODE"), End.UNKNOWN),
    ],
)
def test_a_state_means_one_end(run: RunSnapshot, end: End | None) -> None:
    assert end_of(run) is end


def test_the_token_is_the_dagster_runs_own() -> None:
    assert token_of("a") == token_of("a")
    assert token_of("a") != token_of("b")
    assert len(token_of("a")) == 64


def test_the_last_attempt_of_each_task_counts() -> None:
    def attempt(key: str, number: int, start: int) -> TaskRun:
        return TaskRun(key, seen("RUNNING"), number, start)

    tasks = (attempt("b", 0, 5), attempt("a", 1, 0), attempt("a", 0, 7), attempt("c", 0, 9), attempt("c", 0, 8))
    run = DeployedRun(seen("RUNNING"), tasks)
    assert [(task.task_key, task.attempt_number, task.start_ms) for task in run.latest_tasks] == [
        ("b", 0, 5),
        ("a", 1, 0),
        ("c", 0, 9),
    ]


@pytest.mark.parametrize(
    ("start", "end", "seconds"), [(0, 0, None), (5000, 0, None), (0, 9000, None), (5000, 6500, 1.5)]
)
def test_a_duration_takes_both_ends(start: int, end: int, seconds: float | None) -> None:
    assert TaskRun("a", seen("RUNNING"), 0, start, end).seconds == seconds
    assert DeployedRun(seen("RUNNING"), (), start, end).seconds == seconds


@pytest.mark.parametrize(
    ("state", "end_ms", "end"),
    [
        (seen(None), 0, None),
        (seen(None), 9000, End.UNKNOWN),
        (seen(None, status="RUNNING"), 9000, None),
        (seen("RUNNING"), 9000, None),
        (seen("TERMINATED", "SUCCESS"), 0, End.SUCCEEDED),
    ],
)
def test_a_run_in_a_state_that_nobody_knows_ends_with_its_end_time(
    state: RunSnapshot, end_ms: int, end: End | None
) -> None:
    assert DeployedRun(state, (), 5000, end_ms).end is end
