"""Starting the deployed job once, waiting for its run, and cancelling it when nobody waits any more."""

from __future__ import annotations

from typing import Any

import pytest

from pm_dagster.errors import (
    AuthenticationFailed,
    ConfigurationError,
    NeverAgain,
    ProcessManagerError,
    Refused,
    Throttled,
    Unavailable,
    WorkspaceUnavailable,
)
from pm_dagster.launcher.deployed_job import End
from pm_dagster_tests.fakes.deployed_jobs import CANCELED, RUNNING, SUCCESS, InMemoryDeployedJobs, Job
from pm_dagster_tests.fakes.runs import Fault
from pm_dagster_tests.launcher.launch_bench import (
    JOB,
    LOST_ANSWER,
    NEVER_SENT,
    NO_ANSWER,
    Bench,
    Interrupted,
    bench,
    run_ids,
)


def test_a_job_given_by_id_is_not_looked_for() -> None:
    at = bench(SUCCESS, name="anything")
    assert at.run(job_id=JOB).succeeded
    assert "find_jobs" not in at.jobs.calls


def test_a_refusal_starts_nothing() -> None:
    at = Bench(InMemoryDeployedJobs(Job(1), Job(2)))
    with pytest.raises(ConfigurationError):
        at.run()
    assert at.jobs.calls == ["find_jobs"]


def test_a_second_try_finds_the_run_of_the_first() -> None:
    at = bench(RUNNING, SUCCESS)
    first = at.run()
    again = at.run()
    assert len(run_ids(at)) == 1
    assert again.ended.run_id == first.ended.run_id
    assert at.run(token="another").ended.run_id != first.ended.run_id


@pytest.mark.parametrize("fault", [LOST_ANSWER, NO_ANSWER, NEVER_SENT, Fault(Throttled("slow down", retry_after=7.0))])
def test_an_answer_that_does_not_come_is_asked_for_again(fault: Fault) -> None:
    at = bench(SUCCESS)
    at.jobs.faults["start"] = [fault, fault]
    assert at.run().succeeded
    assert len(run_ids(at)) == 1
    assert at.jobs.calls.count("start") == 3


def test_a_throttled_call_waits_as_long_as_it_was_told_within_reason() -> None:
    at = bench(SUCCESS)
    at.jobs.faults["start"] = [Fault(Throttled("", retry_after=7.0)), Fault(Throttled("", retry_after=3600.0))]
    at.run()
    assert at.naps == [7.0, 30.0]


def test_what_was_certainly_not_sent_is_left_to_another_try() -> None:
    at = bench()
    at.jobs.faults["start"] = [NEVER_SENT] * 4
    with pytest.raises(Unavailable):
        at.run()
    assert at.naps == [1.0, 2.0, 4.0]
    assert at.jobs.calls.count("start") == 4


@pytest.mark.parametrize("fault", [LOST_ANSWER, NO_ANSWER])
def test_a_run_in_doubt_is_asked_for_beyond_the_tries_of_one_call(fault: Fault) -> None:
    at = bench(SUCCESS)
    at.jobs.faults["start"] = [fault] * 9
    assert at.run().succeeded
    assert len(run_ids(at)) == 1
    assert sum("may have started a run; sending run-now again" in line for line in at.lines) == 1


def test_a_run_in_doubt_until_the_deadline_is_said_to_go_on() -> None:
    at = bench()
    at.jobs.faults["start"] = [NO_ANSWER] * 100
    with pytest.raises(NeverAgain, match="may still run: no answer"):
        at.run()
    assert at.now >= at.order.deadline_seconds
    assert any("may have started a run" in line for line in at.lines)


def test_a_run_in_doubt_is_cancelled_when_the_wait_for_its_answer_is_interrupted() -> None:
    at = bench(RUNNING)
    at.jobs.faults["start"] = [LOST_ANSWER] * 4
    at.interrupt_at = 10.0
    with pytest.raises(Interrupted):
        at.run()
    (run,) = at.jobs.runs.values()
    assert run.ahead == [("TERMINATING", None), CANCELED]


@pytest.mark.parametrize("earlier", [[], [LOST_ANSWER]])
def test_a_definite_no_is_passed_on_with_the_doubt_that_is_left(earlier: list[Fault]) -> None:
    at = bench()
    at.jobs.faults["start"] = [*earlier, Fault(Refused("not your job", status=403))]
    with pytest.raises(Refused, match="not your job"):
        at.run()
    assert any("may have started a run" in line for line in at.lines) is bool(earlier)


def test_it_says_where_the_run_is_and_each_change_of_its_state_once() -> None:
    at = bench(("PENDING", None), RUNNING, RUNNING, RUNNING, SUCCESS)
    run_id = at.run().ended.run_id
    link = at.jobs.page_url(JOB, run_id)
    assert at.lines[:4] == [
        f"Waiting for Databricks run {run_id} of job {JOB}: {link}",
        f"Databricks run {run_id} is PENDING (main PENDING)",
        f"Databricks run {run_id} is RUNNING (main RUNNING)",
        f"Databricks run {run_id} is TERMINATED/SUCCESS (main TERMINATED/SUCCESS)",
    ]
    assert at.naps == [5.0] * 4


@pytest.mark.parametrize(
    "error", [WorkspaceUnavailable("HTTP 503"), Throttled("slow down"), WorkspaceUnavailable("s3cret")]
)
def test_a_workspace_that_does_not_answer_for_a_while_is_waited_for(error: ProcessManagerError) -> None:
    at = bench(RUNNING, SUCCESS)
    at.jobs.faults["look_up"] = [Fault(None), *[Fault(error)] * 6]
    assert at.run().succeeded
    assert sum("cannot be looked up now; trying again" in line for line in at.lines) == 1
    assert not any("s3cret" in line for line in at.lines)


def test_a_throttled_look_waits_longer_than_usual_but_not_past_the_deadline() -> None:
    at = bench(RUNNING)
    throttled = [Fault(Throttled("", retry_after=seconds)) for seconds in (20.0, 900.0)]
    at.jobs.faults["look_up"] = throttled
    at.run()
    assert at.naps[:2] == [20.0, 40.0]


def test_the_deadline_cancels_the_run_and_says_so() -> None:
    at = bench(RUNNING)
    outcome = at.run()
    run_id = outcome.ended.run_id
    assert outcome.ended.end is End.OVERDUE
    assert outcome.reason == (
        f"Databricks run {run_id} did not end within 60 s; it was cancelled (last seen as TERMINATED/CANCELED)"
    )
    assert at.jobs.look_up(run_id).state.result_state == "CANCELED"
    assert any(line.startswith(f"Cancelling Databricks run {run_id}: https://") for line in at.lines)


def test_the_deadline_comes_although_the_workspace_never_answers() -> None:
    at = bench(RUNNING)
    at.jobs.faults["look_up"] = [NO_ANSWER] * 1000
    outcome = at.run()
    assert (outcome.ended.end, outcome.ended.run) == (End.OVERDUE, None)
    assert "never seen" in outcome.reason
    assert at.now <= 60 + 30
    assert outcome.seconds == 60


def test_a_state_that_nobody_knows_is_waited_for_until_the_deadline() -> None:
    outcome = bench((None, None)).run()
    assert outcome.ended.end is End.OVERDUE


def test_a_run_that_comes_through_while_it_is_cancelled_is_a_success() -> None:
    at = bench(RUNNING)
    at.jobs.on_call = lambda name: at.jobs.finish(run_ids(at)[0], SUCCESS) if name == "cancel" else None
    assert at.run().ended.end is End.SUCCEEDED


def test_a_run_that_cannot_be_cancelled_is_said_to_go_on() -> None:
    at = bench(RUNNING)
    at.jobs.faults["cancel"] = [NO_ANSWER] * 4
    outcome = at.run()
    assert outcome.ended.end is End.OVERDUE
    assert "could not be cancelled and may still run" in outcome.reason
    assert any("could not be cancelled" in line and outcome.page_url in line for line in at.lines)


@pytest.mark.parametrize(
    "error", [AuthenticationFailed("expired", status=401), Refused("Run 5 does not exist.", status=400, gone=True)]
)
def test_a_run_that_may_not_be_seen_any_more_is_cancelled_and_lost(error: ProcessManagerError) -> None:
    at = bench(RUNNING)
    at.jobs.faults["look_up"] = [Fault(None), Fault(error)]
    outcome = at.run()
    assert outcome.ended.end is End.LOST
    assert str(error) in outcome.reason
    assert at.jobs.calls.count("cancel") == 1


@pytest.mark.parametrize("seconds", [0.0, 5.0, 40.0])
def test_an_interrupted_wait_cancels_the_run_and_is_no_success(seconds: float) -> None:
    at = bench(RUNNING)
    at.interrupt_at = seconds
    with pytest.raises(Interrupted):
        at.run()
    (run,) = at.jobs.runs.values()
    assert run.ahead == [("TERMINATING", None), CANCELED]


def test_an_interruption_before_anything_was_sent_starts_nothing() -> None:
    at = bench(RUNNING)
    at.interrupt_at = 0.0
    at.jobs.faults["start"] = [NEVER_SENT]
    with pytest.raises(Interrupted):
        at.run()
    assert at.jobs.runs == {}
    assert at.jobs.calls == ["find_jobs", "start"]


@pytest.mark.parametrize("when", ["while the answer is under way", "while it waits to ask again"])
def test_a_run_whose_id_was_never_heard_is_cancelled_as_well(when: str) -> None:
    at = bench(RUNNING)
    if when.startswith("while the answer"):
        at.jobs.on_call = _raise_once(at.jobs, "start")
    else:
        at.jobs.faults["start"] = [LOST_ANSWER]
        at.interrupt_at = 0.0
    with pytest.raises(Interrupted):
        at.run()
    (run,) = at.jobs.runs.values()
    assert run.ahead == [("TERMINATING", None), CANCELED]


def _raise_once(jobs: InMemoryDeployedJobs, call: str) -> Any:  # noqa: ANN401
    def on_call(name: str) -> None:
        if name == call:
            jobs.on_call = lambda _name: None
            raise Interrupted

    return on_call


@pytest.mark.parametrize("call", ["start", "cancel"])
def test_a_run_that_cannot_be_cancelled_by_the_interrupted_is_complained_about(call: str) -> None:
    at = bench(RUNNING)
    at.jobs.on_call = _raise_once(at.jobs, "start")
    at.jobs.faults[call] = [Fault(None), *[NO_ANSWER] * 4] if call == "start" else [NO_ANSWER] * 4
    with pytest.raises(Interrupted):
        at.run()
    assert any("may still run" in line and str(JOB) in line for line in at.lines)


def test_an_interruption_after_the_end_cancels_nothing() -> None:
    at = bench(SUCCESS)
    at.jobs.faults["output"] = [NO_ANSWER]
    at.interrupt_at = 0.0
    with pytest.raises(Interrupted):
        at.run()
    assert "cancel" not in at.jobs.calls
