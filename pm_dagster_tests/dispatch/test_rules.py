"""The rules of a dispatch, as tables."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pm_dagster.dispatch.model import (
    Adopt,
    Again,
    Answer,
    Call,
    Decision,
    Defer,
    Entry,
    EntryState,
    FindRun,
    Hold,
    KnownRun,
    LookUp,
    Quarantine,
    RepairRun,
    RunSnapshot,
    StartRun,
    Stop,
    Withdraw,
    Work,
)
from pm_dagster.dispatch.rules import (
    AS_PROVEN,
    Facts,
    Outage,
    Policy,
    after_failure,
    after_find,
    after_look_up,
    decide,
    first_step,
    state_while_going_on,
)
from pm_dagster.dispatch.waiting_job import Branch
from pm_dagster.errors import AuthenticationFailed, ProcessManagerError, Refused, Throttled, WorkspaceUnavailable

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


@pytest.mark.parametrize(
    ("entry", "unresolved", "decided"),
    [
        (REPAIR, True, Defer),
        (REPAIR, False, RepairRun),
        # Both are in doubt: if each waited for the other, neither would ever be repaired.
        (SENT, True, RepairRun),
    ],
)
def test_a_run_that_another_row_may_be_repairing_unseen_is_not_repaired_beside_it(
    entry: Entry,
    *,
    unresolved: bool,
    decided: type[Decision],
) -> None:
    other = KnownRun(7, 2, POLICY.control_table, 11, 1, unresolved=unresolved)
    answer = Answer(FAILED, None, 0.0)
    decision = decide(Work(entry, LookUp()), answer, Facts(known={7: [other]}), POLICY)
    assert isinstance(decision, decided)


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
def test_no_answer_leaves_a_row_for_more_than_an_hour(call: Call, error: WorkspaceUnavailable) -> None:
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


def _decided(
    call: StartRun | RepairRun | LookUp, error: ProcessManagerError, facts: Facts, *, tries: int = 1
) -> Decision:
    """What is decided for a row whose call failed for the so many-th time."""
    work = Work(NEW, call)
    work.unanswered[work.call] = tries
    return decide(work, Answer(None, error, 0.0), facts, POLICY)


@pytest.mark.parametrize(
    ("pause", "left", "decided"),
    [
        (60.0, 500.0, Again(0.0)),
        (61.0, 500.0, Defer("run-now: slow", 61.0)),
        (30.0, 20.0, Defer("run-now: slow", 30.0)),
        (7200.0, 500.0, Defer("run-now: slow", 3600.0)),
    ],
)
def test_a_row_is_not_kept_waiting_for_a_long_throttling(pause: float, left: float, decided: Decision) -> None:
    facts = Facts(throttle_pause=pause, seconds_left=left)
    assert _decided(StartRun(), Throttled("slow"), facts) == decided


@pytest.mark.parametrize(
    ("outage", "tries", "stops"),
    [
        (Outage.NONE, 1, False),
        (Outage.NONE, 4, False),
        (Outage.SUSPECTED, 1, False),
        (Outage.SUSPECTED, 4, True),
        (Outage.CERTAIN, 1, True),
    ],
)
def test_an_outage_stops_the_dispatch_once_it_is_certain_or_a_row_gives_up(
    outage: Outage, tries: int, *, stops: bool
) -> None:
    assert isinstance(_decided(StartRun(), LOST, Facts(outage=outage), tries=tries), Stop) == stops


def test_an_outage_says_nothing_about_a_refusal() -> None:
    assert isinstance(_decided(StartRun(), NO, Facts(outage=Outage.CERTAIN)), Hold)


def test_a_refusal_is_held_until_it_is_proven() -> None:
    assert _decided(StartRun(), NO, Facts()) == Hold("run-now was refused: no", NO, starting=True)
    assert _decided(StartRun(), NO, Facts(proven=True)) == Quarantine("run-now was refused: no", AS_PROVEN)


def test_what_no_call_refused_is_final_without_a_witness() -> None:
    work = Work(REPAIR, LookUp())
    decided = decide(work, Answer(run("SKIPPED"), None, 0.0), Facts(), STRICT)
    assert isinstance(decided, Quarantine)
    assert decided.rule


@pytest.mark.parametrize(
    ("entry", "decision", "error", "state"),
    [
        (replace(NEW, state=EntryState.SENDING), Again(1.0), NO, EntryState.CLAIMED),
        (replace(NEW, state=EntryState.SENDING), Again(1.0), NEVER_SENT, None),
        (replace(NEW, state=EntryState.SENDING), Hold("no", NO, starting=True), NO, EntryState.CLAIMED),
        (replace(NEW, state=EntryState.SENDING), Stop(AuthenticationFailed("who")), None, EntryState.CLAIMED),
        (replace(NEW, state=EntryState.SENDING), Stop(LOST), None, None),
        (replace(NEW, state=EntryState.SENDING, ambiguous=True), Again(1.0), NO, None),
        (replace(NEW, state=EntryState.SENDING, ambiguous=True), Hold("no", NO, starting=True), NO, None),
        (replace(NEW, state=EntryState.SENDING, ambiguous=True), Stop(AuthenticationFailed("who")), None, None),
        (replace(NEW, state=EntryState.SENDING), LookUp(), NO, None),
    ],
)
def test_only_a_call_that_was_refused_gives_its_intent_back(
    entry: Entry, decision: Decision, error: ProcessManagerError | None, state: EntryState | None
) -> None:
    assert state_while_going_on(entry, decision, error) == state
