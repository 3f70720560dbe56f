"""What is told about the end of a run on a cluster."""

from __future__ import annotations

import pytest

from pm_dagster.dispatch.report import Report, report_line
from pm_dagster.errors import Refused
from pm_dagster.launcher.deployed_job import End, TaskOutput
from pm_dagster_tests.fakes.deployed_jobs import CANCELED, FAILED, RUNNING, SUCCESS, State
from pm_dagster_tests.fakes.runs import Fault
from pm_dagster_tests.launcher.launch_bench import JOB, NO_ANSWER, bench


@pytest.mark.parametrize(
    ("state", "end"),
    [
        (SUCCESS, End.SUCCEEDED),
        (("TERMINATED", "SUCCESS_WITH_FAILURES"), End.SUCCEEDED_WITH_FAILURES),
        (FAILED, End.FAILED),
        (("TERMINATED", "TIMEDOUT"), End.TIMED_OUT),
        (CANCELED, End.CANCELED),
        (("INTERNAL_ERROR", None), End.INTERNAL_ERROR),
        (("SKIPPED", None), End.SKIPPED),
        (("TERMINATED", None), End.UNKNOWN),
    ],
)
def test_only_success_is_a_success_and_each_end_has_its_words(state: State, end: End) -> None:
    outcome = bench(RUNNING, state, message="because of\nthis").run()
    assert outcome.ended.end is end
    assert outcome.succeeded is (end is End.SUCCEEDED)
    assert outcome.reason.startswith(f"Databricks run {outcome.ended.run_id} {end}")
    assert "cancel" not in outcome.reason or end is End.CANCELED


def test_a_failure_gives_the_state_and_the_message_on_one_line() -> None:
    outcome = bench(FAILED, message="Task main failed\n with s3cret").run()
    assert outcome.reason.endswith("failed (INTERNAL_ERROR/FAILED): Task main failed with ***")


def test_the_numbers_of_the_report_are_found_in_the_output() -> None:
    logs = f"some words\n{report_line(Report(read=3, scheduled=2))}\n"
    outcome = bench(SUCCESS, output=TaskOutput(logs)).run()
    assert outcome.report is not None
    assert (outcome.report["read"], outcome.report["scheduled"]) == (3, 2)


@pytest.mark.parametrize("faults", [[], [Fault(Refused("no output", status=400))], [NO_ANSWER] * 4])
def test_a_success_without_readable_numbers_stays_a_success_and_says_so(faults: list[Fault]) -> None:
    at = bench(SUCCESS)
    at.jobs.faults["output"] = faults
    outcome = at.run()
    assert outcome.succeeded
    assert outcome.report is None
    assert any("has no report line" in line for line in at.lines)


def test_a_failed_task_tells_its_error_and_last_lines_without_secrets() -> None:
    logs = "\n".join(["first line", *(f"line {number}" for number in range(100)), "FATAL s3cret", ""])
    outcome = bench(FAILED, output=TaskOutput(logs, "SystemExit: s3cret")).run()
    (messages,) = outcome.messages
    assert messages.error == "SystemExit: ***"
    assert messages.tail.splitlines()[-1] == "FATAL ***"
    assert len(messages.tail.splitlines()) == 15


_LOG = "INFO reading\nERROR one row\nCRITICAL no database, s3cret\nTraceback\nSystemExit: 1\n"


@pytest.mark.parametrize(
    ("error", "logs", "why"),
    [
        ("ValueError: no\n s3cret " + "x" * 999, _LOG, " In task main: ValueError: no *** " + "x" * 281),
        ("SystemExit: 1", _LOG, " In task main: CRITICAL no database, ***"),
        ("SystemExit: 1", "INFO reading", ""),
        ("", _LOG, ""),
    ],
)
def test_the_reason_ends_with_the_cause_in_a_few_words(error: str, logs: str, why: str) -> None:
    outcome = bench(FAILED, message="Workload failed.", output=TaskOutput(logs, error)).run()
    assert outcome.reason.endswith(f"failed (INTERNAL_ERROR/FAILED): Workload failed.{why}")


def test_output_that_was_cut_is_said_to_be() -> None:
    at = bench(SUCCESS, output=TaskOutput("x" * 10, truncated=True))
    at.run()
    assert any("only a part of the output" in line for line in at.lines)


def test_a_skipped_run_names_the_one_that_was_in_its_way() -> None:
    at = bench(RUNNING)
    other = at.jobs.start(JOB, "somebody else's")
    outcome = at.run()
    assert outcome.ended.end is End.SKIPPED
    assert outcome.reason == (
        f"Databricks run {outcome.ended.run_id} was skipped because another run of the job was active: "
        f"run {other}, {at.jobs.page_url(JOB, other)}"
    )
    assert at.jobs.runs[other].active
    assert "output" not in at.jobs.calls


@pytest.mark.parametrize("faults", [[NO_ANSWER], [Fault(Refused("no", status=403))]])
def test_a_skipped_run_is_told_even_when_the_other_cannot_be_named(faults: list[Fault]) -> None:
    at = bench(("SKIPPED", None))
    at.jobs.faults["active_runs"] = faults
    assert at.run().reason.endswith("another run of the job was active")


def test_the_seconds_are_the_runs_own() -> None:
    assert bench(SUCCESS).run().seconds == 90.0
