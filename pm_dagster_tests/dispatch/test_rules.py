"""The rules of a dispatch, as tables."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pm_dagster.dispatch.model import (
    Adopt,
    Again,
    Call,
    Decision,
    Defer,
    Entry,
    EntryState,
    FindRun,
    LookUp,
    Quarantine,
    RepairRun,
    RunSnapshot,
    StartRun,
    Stop,
    Withdraw,
)
from pm_dagster.dispatch.rules import Policy, after_failure, after_find, after_look_up, first_step
from pm_dagster.dispatch.waiting_job import Branch
from pm_dagster.errors import AuthenticationFailed, Refused, Throttled, WorkspaceUnavailable

NEW = Entry(1, 10, 1, Branch.NEW, EntryState.CLAIMED, 1001, None, {}, "t")
REPAIR = Entry(1, 10, 1, Branch.REPAIR, EntryState.CLAIMED, 1001, 7, {}, "t")
SENT = replace(REPAIR, state=EntryState.SENDING, ambiguous=True)
POLICY = Policy()
STRICT = Policy(fresh_run_allowed=False)


def run(life: str | None, result: str | None = None, *repairs: int) -> RunSnapshot:
    return RunSnapshot(7, 1001, life, result, repair_ids=repairs)


FAILED = run("INTERNAL_ERROR", "FAILED")


@pytest.mark.parametrize(
    ("entry", "step"),
    [
        (NEW, StartRun()),
        (replace(NEW, state=EntryState.SENDING), StartRun()),
        (replace(NEW, state=EntryState.SENDING, waiting=False), FindRun()),
        (REPAIR, LookUp()),
        (SENT, LookUp()),
        (replace(SENT, waiting=False), LookUp()),
        (replace(REPAIR, fresh_run=True), StartRun()),
    ],
)
def test_the_first_step_follows_from_the_ledger(entry: Entry, step: Decision) -> None:
    assert first_step(entry) == step


@pytest.mark.parametrize(
    ("entry", "snapshot", "decided"),
    [
        (REPAIR, FAILED, RepairRun(None)),
        (REPAIR, run("TERMINATED", "FAILED", 3, 5), RepairRun(5)),
        (REPAIR, run("TERMINATED", "TIMEDOUT"), RepairRun(None)),
        (REPAIR, run("TERMINATED", "CANCELED"), RepairRun(None)),
        (SENT, FAILED, RepairRun(None)),
        (replace(SENT, sent_repair_id=5), run("TERMINATED", "FAILED", 3, 5), RepairRun(5)),
    ],
)
def test_a_failed_run_is_repaired_naming_its_latest_repair(
    entry: Entry, snapshot: RunSnapshot, decided: Decision
) -> None:
    assert after_look_up(entry, snapshot, POLICY) == decided


@pytest.mark.parametrize(
    ("entry", "snapshot", "repair"),
    [
        (REPAIR, run("RUNNING"), None),
        (REPAIR, run(None), None),
        (REPAIR, run("RUNNING", None, 3), 3),
        (SENT, run("RUNNING", None, 9), 9),
        (SENT, run("TERMINATED", "FAILED", 9), 9),
        (replace(SENT, sent_repair_id=3), run("TERMINATED", "FAILED", 3, 9), 9),
        (replace(SENT, waiting=False, sent_repair_id=3), run("TERMINATED", "SUCCESS", 3, 9), 9),
    ],
)
def test_work_that_is_under_way_is_adopted(entry: Entry, snapshot: RunSnapshot, repair: int | None) -> None:
    decided = after_look_up(entry, snapshot, POLICY)
    assert isinstance(decided, Adopt)
    assert (decided.run_id, decided.repair_id, decided.succeeded) == (7, repair, False)


def test_a_succeeded_run_is_closed_as_such() -> None:
    decided = after_look_up(REPAIR, run("TERMINATED", "SUCCESS"), POLICY)
    assert isinstance(decided, Adopt)
    assert decided.succeeded


def test_a_history_that_lags_is_read_again_later() -> None:
    entry = replace(SENT, sent_repair_id=5)
    assert isinstance(after_look_up(entry, run("TERMINATED", "FAILED", 3), POLICY), Defer)


def test_a_row_that_left_waiting_is_not_repaired() -> None:
    assert isinstance(after_look_up(replace(SENT, waiting=False), FAILED, POLICY), Withdraw)


def test_a_run_that_never_ran_is_replaced_if_the_policy_allows() -> None:
    assert isinstance(after_look_up(REPAIR, run("SKIPPED"), POLICY), StartRun)
    refused = after_look_up(REPAIR, run("SKIPPED"), STRICT)
    assert isinstance(refused, Quarantine)
    assert "PM_MISSING_RUN=fail" in refused.reason


def test_a_run_that_is_gone_is_replaced_if_the_policy_allows() -> None:
    gone = Refused("gone", status=404, gone=True)
    assert isinstance(after_failure(REPAIR, Call.GET_RUN, gone, 0, 0, POLICY), StartRun)
    assert isinstance(after_failure(REPAIR, Call.GET_RUN, gone, 0, 0, STRICT), Quarantine)


def test_a_search_decides_by_what_it_finds() -> None:
    assert isinstance(after_find(NEW, 5), Adopt)
    assert isinstance(after_find(replace(NEW, waiting=False), None), Withdraw)
    assert isinstance(after_find(NEW, None), Quarantine)


LOST = WorkspaceUnavailable("lost")
NEVER_SENT = WorkspaceUnavailable("refused", maybe_applied=False)
NO = Refused("no", status=400)
BUSY = Refused("busy", status=409)


@pytest.mark.parametrize(
    ("entry", "call", "error", "tries", "refusals", "kind"),
    [
        (NEW, Call.RUN_NOW, LOST, 1, 0, Again),
        (NEW, Call.RUN_NOW, LOST, 4, 0, Defer),
        (NEW, Call.RUN_NOW, NEVER_SENT, 1, 0, Again),
        (NEW, Call.RUN_NOW, NO, 0, 0, Quarantine),
        (replace(NEW, ambiguous=True), Call.RUN_NOW, NO, 0, 0, FindRun),
        (NEW, Call.RUN_NOW, BUSY, 0, 0, Defer),
        (replace(NEW, attempts=4), Call.RUN_NOW, BUSY, 0, 0, Quarantine),
        (REPAIR, Call.REPAIR, LOST, 1, 0, LookUp),
        (REPAIR, Call.REPAIR, LOST, 4, 0, Defer),
        (REPAIR, Call.REPAIR, NEVER_SENT, 1, 0, Again),
        (REPAIR, Call.REPAIR, NO, 0, 1, LookUp),
        (REPAIR, Call.REPAIR, NO, 0, 2, Defer),
        (replace(REPAIR, attempts=1), Call.REPAIR, NO, 0, 2, Quarantine),
        (replace(REPAIR, attempts=1, ambiguous=True), Call.REPAIR, NO, 0, 2, Defer),
        (replace(REPAIR, attempts=4, ambiguous=True), Call.REPAIR, NO, 0, 2, Quarantine),
        (REPAIR, Call.REPAIR, BUSY, 0, 1, LookUp),
        (REPAIR, Call.GET_RUN, LOST, 1, 0, Again),
        (REPAIR, Call.GET_RUN, LOST, 4, 0, Defer),
        (REPAIR, Call.GET_RUN, NO, 0, 0, Quarantine),
        (NEW, Call.RUN_NOW, Throttled("slow"), 9, 0, Again),
        (NEW, Call.RUN_NOW, AuthenticationFailed("who"), 0, 0, Stop),
    ],
)
def test_each_failure_has_its_consequence(
    entry: Entry, call: Call, error: Refused, tries: int, refusals: int, kind: type
) -> None:
    assert isinstance(after_failure(entry, call, error, tries, refusals, POLICY), kind)


def test_pauses_double_and_a_lost_answer_is_left_to_settle() -> None:
    pauses = [after_failure(NEW, Call.RUN_NOW, LOST, tries, 0, POLICY) for tries in (1, 2, 3)]
    assert pauses == [Again(1.0), Again(2.0), Again(4.0)]
    left = after_failure(NEW, Call.RUN_NOW, LOST, 4, 0, POLICY)
    assert isinstance(left, Defer)
    assert (left.seconds, left.counts) == (POLICY.settle_seconds, False)


@pytest.mark.parametrize(("attempts", "seconds"), [(0, 30.0), (1, 60.0), (6, 1920.0), (7, 3600.0), (18, 3600.0)])
def test_a_refusal_that_passes_never_leaves_its_row_for_more_than_an_hour(attempts: int, seconds: float) -> None:
    """With as many refusals as the settings take; what is in doubt is tried without an end."""
    policy = Policy(max_attempts=20)
    decided = after_failure(replace(NEW, attempts=attempts), Call.RUN_NOW, BUSY, 0, 0, policy)
    assert _pause_of(decided) == seconds
    repair = replace(SENT, attempts=attempts)
    assert _pause_of(after_failure(repair, Call.REPAIR, NO, 0, 2, policy)) == seconds
    for number in (attempts, attempts + 5_000):
        decided = after_failure(replace(SENT, attempts=number), Call.GET_RUN, NO, 0, 0, policy)
        assert _pause_of(decided) == (seconds if number == attempts else 3600.0)


@pytest.mark.parametrize(("call", "error"), [(Call.RUN_NOW, NEVER_SENT), (Call.RUN_NOW, LOST), (Call.REPAIR, LOST)])
def test_silence_never_leaves_a_row_for_more_than_an_hour(call: Call, error: WorkspaceUnavailable) -> None:
    policy = Policy(call_tries=20)
    pauses = [_pause_of(after_failure(REPAIR, call, error, tries, 0, policy)) for tries in range(1, 21)]
    assert pauses[:3] == [1.0, 2.0, 4.0]
    assert pauses[12:] == [3600.0] * 8


def _pause_of(decided: Decision) -> float:
    if isinstance(decided, Defer):
        return decided.seconds
    assert isinstance(decided, (Again, LookUp))
    return decided.delay


def test_a_pause_that_is_set_longer_than_an_hour_is_kept() -> None:
    policy = Policy(settle_seconds=86_400.0, call_backoff_seconds=3600.0)
    for entry in (replace(NEW, attempts=3), replace(NEW, attempts=2, ambiguous=True)):
        assert _pause_of(after_failure(entry, Call.RUN_NOW, BUSY, 0, 0, policy)) == 86_400.0
    assert after_failure(NEW, Call.RUN_NOW, NEVER_SENT, 3, 0, policy) == Again(3600.0)


def test_only_a_definite_no_uses_up_an_attempt() -> None:
    counted = after_failure(NEW, Call.RUN_NOW, BUSY, 0, 0, POLICY)
    assert isinstance(counted, Defer)
    assert counted.counts
