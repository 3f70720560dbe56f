"""What Dagster repeats and what it does not; and that repeating continues from the ledger."""

from __future__ import annotations

import traceback

import dagster as dg
import pytest

from pm_dagster.dispatch.model import Call
from pm_dagster.errors import (
    AuthenticationFailed,
    ConfigurationError,
    ControlPlaneUnavailable,
    Unavailable,
    WorkspaceUnavailable,
)
from pm_dagster.orchestration.execution import RETRY, translated
from pm_dagster_tests.fakes.runs import Fault
from pm_dagster_tests.orchestration.conftest import CodeLocation

_TOKEN = "dapi0123456789abcdef0123456789abcdef"


def test_the_policy_is_three_retries_from_five_seconds_on() -> None:
    policy = (RETRY.max_retries, RETRY.delay, RETRY.backoff, RETRY.jitter)
    assert policy == (3, 5, dg.Backoff.EXPONENTIAL, dg.Jitter.PLUS_MINUS)


@pytest.mark.slow
def test_a_retry_succeeds_without_repeating_a_recorded_call(code_location: CodeLocation) -> None:
    # One after the other: an answer that comes beside a lost one would end the row of lost ones.
    code_location.with_settings(concurrency=1)
    for run_id in (1, 2, 3):
        code_location.database.add(run_id)
    gone = Fault(WorkspaceUnavailable("no answer", maybe_applied=False))
    code_location.runs.faults[Call.RUN_NOW] = [Fault(None), gone, gone, gone]
    result = code_location.dispatch()
    assert result.success
    assert code_location.retried(result) == ["dispatched_jobs.trigger_new_jobs"]
    assert set(code_location.database.statuses().values()) == {"SCHEDULED"}
    assert len(code_location.runs.runs) == 3
    assert code_location.runs.count(Call.RUN_NOW) == 1 + 3 + 2
    assert code_location.metadata(result)["new/accepted"] == 3


@pytest.mark.slow
def test_a_database_that_returns_is_a_retry_as_well(code_location: CodeLocation) -> None:
    code_location.database.add(1)
    code_location.faults["waiting"] = [ControlPlaneUnavailable("the database is restarting")]
    result = code_location.dispatch()
    assert result.success
    assert code_location.retried(result) == ["waiting_jobs"]


def test_refused_credentials_fail_at_once_and_cost_no_attempt(code_location: CodeLocation) -> None:
    code_location.database.add(1)
    code_location.runs.faults[Call.RUN_NOW] = [Fault(AuthenticationFailed(f"Bearer {_TOKEN} is not valid", status=401))]
    result = code_location.dispatch()
    assert not result.success
    assert code_location.retried(result) == []
    (failure,) = [e for e in result.get_step_failure_events() if "trigger_new_jobs" in str(e.step_key)]
    data = failure.step_failure_data
    assert data.user_failure_data is not None
    assert data.user_failure_data.metadata["HTTP status"].value == "401"
    assert _TOKEN not in repr(result.all_events)
    record = code_location.database.newest(1)
    assert record is not None
    assert (record.entry.attempts, code_location.database.statuses()) == (0, {1: "WAITING"})


def test_what_went_well_is_closed_although_the_op_fails(code_location: CodeLocation) -> None:
    code_location.with_settings(concurrency=1)
    code_location.database.add(1)
    code_location.database.add(2)
    code_location.runs.refuse_after(1, Call.RUN_NOW, AuthenticationFailed("expired", status=401))
    assert not code_location.dispatch().success
    assert code_location.database.statuses() == {1: "SCHEDULED", 2: "WAITING"}


def test_what_went_well_is_closed_although_the_other_branch_fails_for_good(code_location: CodeLocation) -> None:
    """One run that never answers fails its op in every dispatch, and the last op, which closes, is never reached."""
    code_location.database.add(1)
    code_location.database.add(2, previous_run_id=code_location.runs.failed_run())
    code_location.runs.faults[Call.GET_RUN] = [Fault(ConfigurationError("every answer is too long"))]
    assert not code_location.dispatch().success
    assert code_location.database.statuses() == {1: "SCHEDULED", 2: "WAITING"}


@pytest.mark.parametrize("error", [Unavailable(f"Bearer {_TOKEN}"), ConfigurationError(f"token {_TOKEN}")])
def test_no_token_stays_in_a_translated_error_or_its_traceback(error: Exception) -> None:
    with pytest.raises(Exception) as caught, translated():  # noqa: PT011 two kinds, told apart below
        raise error
    assert isinstance(caught.value, Unavailable | dg.Failure)
    assert _TOKEN not in "".join(traceback.format_exception(caught.value))
    assert _TOKEN not in str(getattr(caught.value, "description", ""))


def test_cancellation_passes_through() -> None:
    with pytest.raises(dg.DagsterExecutionInterruptedError), translated():
        raise dg.DagsterExecutionInterruptedError
