"""No row is refused for good on the word of a workspace that refuses all calls, and a row that is at fault is."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

import pytest

from pm_dagster.config.settings import Settings
from pm_dagster.dispatch.circuit_breaker import BreakerState, RefusalBreaker
from pm_dagster.dispatch.model import (
    Answer,
    Call,
    Decision,
    Defer,
    Entry,
    EntryState,
    Hold,
    LookUp,
    Quarantine,
    StartRun,
    Work,
)
from pm_dagster.dispatch.report import Report
from pm_dagster.dispatch.rules import (
    AS_PROVEN,
    BY_EARLIER_SUCCESS,
    BY_LATER_SUCCESS,
    BY_NAME,
    Facts,
    Policy,
    after_witness,
    decide,
    without_witness,
)
from pm_dagster.dispatch.service import Dispatch
from pm_dagster.dispatch.waiting_job import Branch
from pm_dagster.errors import (
    AllStartsRefused,
    AuthenticationFailed,
    ForeignAnswer,
    Kind,
    ProcessManagerError,
    Refused,
    WorkspaceUnavailable,
)
from pm_dagster_tests.fakes.control_plane import InMemoryControlPlane, InMemoryDatabase
from pm_dagster_tests.fakes.database import Record
from pm_dagster_tests.fakes.runs import InMemoryRuns

SETTINGS = Settings(rate_run_now=0, rate_repair=0, rate_get_run=0, call_backoff_seconds=0, settle_seconds=30)
POLICY = Policy()
JOBS = tuple(range(1, 40))
Say = Callable[[Call, int], ProcessManagerError | None]


class RefusingRuns(InMemoryRuns):
    """The fake, whose ``says`` may refuse any call by what it is about: the job, or the run."""

    def __init__(self) -> None:
        super().__init__(JOBS)
        self.says: Say = lambda _call, _number: None

    def _begin(self, call: Call, number: int):  # type: ignore[no-untyped-def]  # noqa: ANN202 as the fake's
        begun = super()._begin(call, number)
        if error := self.says(call, number):
            raise error
        return begun


class Passes:
    """A database, a workspace and passes over them, one call at a time unless told otherwise."""

    def __init__(self) -> None:
        self.database = InMemoryDatabase()
        self.runs = RefusingRuns()
        self.settings = replace(SETTINGS, concurrency=1)
        self.rows = 0

    def add(self, *jobs: int) -> None:
        """A row for each job, in this order."""
        for job in jobs:
            self.rows += 1
            self.database.add(self.rows, job)

    def run(self) -> Report:
        """A whole pass."""
        dispatch = Dispatch(InMemoryControlPlane(self.database, self.settings), self.runs, self.settings)
        try:
            return dispatch.run()
        finally:
            dispatch.control.end()

    def record(self, row: int) -> Record:
        """The newest entry of a row."""
        record = self.database.newest(row)
        assert record is not None
        return record

    def statuses(self) -> list[str]:
        """The rows' statuses, in their order."""
        return [row.status for row in self.database.rows.values()]

    def rule(self, row: int) -> str:
        """The rule that made a row's refusal final, as its event has it."""
        told = [event.detail for event in self.record(row).events if event.kind == "quarantined"]
        return told[-1].rpartition("[final: ")[2].rstrip("]") if told else ""

    def wait(self) -> None:
        """Let the pauses run down."""
        for record in self.database.ledger.values():
            record.not_before = None


@pytest.fixture(params=[1, 8])
def passes(request: pytest.FixtureRequest) -> Passes:
    """One call at a time, and several."""
    made = Passes()
    made.settings = replace(SETTINGS, concurrency=request.param)
    return made


@pytest.fixture
def single() -> Passes:
    """One call at a time."""
    return Passes()


def forbidden(*jobs: int) -> Say:
    """Rights that are lacking for these jobs."""
    text = "HTTP 403 PERMISSION_DENIED User x does not have Manage Run permissions on job"
    return lambda call, job: (
        Refused(f"{text} {job}", status=403) if call is Call.RUN_NOW and job in (jobs or JOBS) else None
    )


def unknown(*jobs: int) -> Say:
    """Jobs that do not exist."""
    return lambda call, job: (
        Refused(f"Job {job} does not exist.", status=400, job_absent=True)
        if call is Call.RUN_NOW and job in (jobs or JOBS)
        else None
    )


@pytest.mark.parametrize("jobs", [tuple(range(1, 31)), (1, 2) * 10, (1,) * 20, (1, 2, 3) * 2])
def test_all_calls_forbidden_stop_the_pass_and_blames_nobody(passes: Passes, jobs: tuple[int, ...]) -> None:
    passes.add(*jobs)
    passes.runs.says = forbidden()
    with pytest.raises(AllStartsRefused, match=r"PERMISSION_DENIED.*No row is blamed"):
        passes.run()
    assert set(passes.statuses()) == {"WAITING"}
    assert passes.runs.count(Call.RUN_NOW) < 30
    records = passes.database.ledger.values()
    touched = [record for record in records if any(event.kind == "answer" for event in record.events)]
    assert touched
    for record in touched:
        assert record.entry.state is EntryState.DEFERRED
        assert "not held against the row" in record.reason
    passes.wait()
    passes.runs.says = lambda _call, _number: None
    assert passes.run().scheduled == len(jobs)
    assert len(passes.runs.runs) == len(jobs)


def test_a_maintenance_that_begins_in_mid_pass_blames_nobody(passes: Passes) -> None:
    passes.add(*JOBS)
    good = 12

    def says(call: Call, job: int) -> ProcessManagerError | None:
        return forbidden()(call, job) if len(passes.runs.runs) >= good else None

    passes.runs.says = says
    with pytest.raises(AllStartsRefused):
        passes.run()
    assert passes.statuses().count("SCHEDULED") == good
    assert passes.statuses().count("FAILED") == 0


def test_a_maintenance_that_passes_is_not_noticed(passes: Passes) -> None:
    passes.add(*JOBS)

    def says(call: Call, job: int) -> ProcessManagerError | None:
        return forbidden()(call, job) if 10 <= passes.runs.count(Call.RUN_NOW) < 15 else None

    passes.runs.says = says
    passes.run()
    assert "FAILED" not in passes.statuses()
    passes.wait()
    passes.run()
    assert set(passes.statuses()) == {"SCHEDULED"}


@pytest.mark.parametrize("order", [(1,) * 100 + (2,) * 20, (2,) * 20 + (1,) * 100, (1, 1, 1, 1, 1, 2) * 20])
def test_one_forbidden_job_beside_one_that_works_is_refused(passes: Passes, order: tuple[int, ...]) -> None:
    passes.add(*order)
    passes.runs.says = forbidden(1)
    passes.run()
    expected = ["FAILED" if job == 1 else "SCHEDULED" for job in order]
    assert passes.statuses() == expected
    rules = {passes.rule(row) for row, job in enumerate(order, start=1) if job == 1}
    assert rules <= {BY_LATER_SUCCESS, BY_EARLIER_SUCCESS, AS_PROVEN}


def test_a_forbidden_row_alone_waits_with_its_reason_and_longer_each_time(single: Passes) -> None:
    single.add(1)
    single.runs.says = forbidden(1)
    for attempts in (1, 2, 3):
        single.run()
        assert single.statuses() == ["WAITING"]
        record = single.record(1)
        assert (record.entry.state, record.entry.attempts) == (EntryState.DEFERRED, attempts)
        assert "PERMISSION_DENIED" in record.reason
        single.wait()
    single.add(2)
    single.run()
    assert single.statuses() == ["FAILED", "SCHEDULED"]


def test_a_right_that_is_denied_once_is_no_refusal(passes: Passes) -> None:
    passes.add(*JOBS)
    seen: set[int] = set()

    def says(call: Call, job: int) -> ProcessManagerError | None:
        if job in seen or job % 9:
            return None
        seen.add(job)
        return forbidden()(call, job)

    passes.runs.says = says
    passes.run()
    assert set(passes.statuses()) == {"SCHEDULED"}


def test_a_job_that_works_contradicts_what_was_said_of_its_other_row(single: Passes) -> None:
    single.add(1, 1, 2)

    def says(call: Call, job: int) -> ProcessManagerError | None:
        return forbidden()(call, job) if job == 1 and not single.runs.runs and len(single.runs.calls) <= 2 else None

    single.runs.says = says
    single.run()
    assert single.statuses().count("FAILED") == 0


@pytest.mark.parametrize("jobs", [(1,), (1, 2), (1,) * 50, (1, 2) * 25])
def test_one_or_two_jobs_that_do_not_exist_are_refused_without_a_success(passes: Passes, jobs: tuple[int, ...]) -> None:
    passes.add(*jobs)
    passes.runs.says = unknown()
    passes.run()
    assert set(passes.statuses()) == {"FAILED"}
    assert {passes.rule(row) for row in range(1, len(jobs) + 1)} == {BY_NAME}


@pytest.mark.parametrize("jobs", [(1, 2, 3), (1, 2, 3, 4), JOBS])
def test_a_workspace_in_which_no_job_exists_is_another_workspace(passes: Passes, jobs: tuple[int, ...]) -> None:
    passes.add(*jobs)
    passes.runs.says = unknown()
    with pytest.raises(AllStartsRefused, match="DATABRICKS_HOST"):
        passes.run()
    assert set(passes.statuses()) == {"WAITING"}


def test_a_few_unknown_jobs_among_good_ones_are_refused(passes: Passes) -> None:
    passes.add(*JOBS)
    passes.runs.says = unknown(3, 4, 20, 38, 39)
    passes.run()
    assert passes.statuses().count("FAILED") == 5


@pytest.mark.parametrize("kind", [Kind.UNNAMED, Kind.UNKNOWN])
def test_a_refusal_that_names_nobody_needs_a_witness(single: Passes, kind: Kind) -> None:
    no = Refused("HTTP 400 SOMETHING", status=400, kind=kind)
    single.add(1)
    single.runs.says = lambda call, job: no if call is Call.RUN_NOW and job == 1 else None
    for _ in range(8):
        single.run()
        single.wait()
    assert single.statuses() == ["WAITING"]
    single.add(2)
    single.run()
    assert single.statuses() == ["FAILED", "SCHEDULED"]


@pytest.mark.parametrize("most", [1, 2, 5])
def test_an_unknown_refusal_is_never_final_the_first_time(single: Passes, most: int) -> None:
    single.settings = replace(single.settings, max_attempts=most)
    no = Refused("HTTP 400 NEW", status=400, kind=Kind.UNKNOWN)
    single.add(1)
    single.runs.says = lambda call, job: no if call is Call.RUN_NOW and job == 1 else None
    passes = 0
    while single.statuses()[0] == "WAITING":
        single.add(2)
        single.run()
        single.wait()
        passes += 1
    assert passes == max(2, most)


def test_an_address_that_answers_for_nobody_stops_the_pass_with_its_own_error(passes: Passes) -> None:
    passes.add(*JOBS)
    error = ForeignAnswer("HTTP 404: no answer of the Jobs API at https://x", status=404)
    passes.runs.says = lambda call, _job: error if call is Call.RUN_NOW else None
    with pytest.raises(WorkspaceUnavailable, match="no answer of the Jobs API"):
        passes.run()
    assert set(passes.statuses()) == {"WAITING"}


def test_one_foreign_answer_is_tried_again(passes: Passes) -> None:
    passes.add(1, 2)
    errors = [ForeignAnswer("HTTP 404", status=404)] * 2
    passes.runs.says = lambda call, _job: errors.pop() if call is Call.RUN_NOW and errors else None
    passes.run()
    assert passes.statuses() == ["SCHEDULED", "SCHEDULED"]
    assert len(passes.runs.runs) == 2


def test_a_foreign_answer_for_a_run_never_starts_another(single: Passes) -> None:
    run_id = single.runs.failed_run(1)
    single.runs.runs[run_id].life_cycle, single.runs.runs[run_id].result = "RUNNING", None
    single.database.add(1, 1, run_id)
    error = ForeignAnswer("HTTP 404", status=404)
    single.runs.says = lambda call, _job: error if call is Call.GET_RUN else None
    with pytest.raises(WorkspaceUnavailable):
        single.run()
    single.runs.says = lambda _call, _job: None
    single.wait()
    single.run()
    assert (single.statuses(), single.runs.count(Call.RUN_NOW)) == (["SCHEDULED"], 0)


def test_look_ups_that_are_refused_to_all_rows_blame_none_and_start_nothing(passes: Passes) -> None:
    for row in range(1, 21):
        passes.database.add(row, row, passes.runs.failed_run(row))
    no = Refused("HTTP 403 PERMISSION_DENIED", status=403)
    passes.runs.says = lambda call, _job: no if call is Call.GET_RUN else None
    with pytest.raises(AllStartsRefused):
        passes.run()
    assert set(passes.statuses()) == {"WAITING"}
    assert passes.runs.count(Call.RUN_NOW) == passes.runs.count(Call.REPAIR) == 0


def test_repairs_that_are_refused_to_all_rows_blame_none(passes: Passes) -> None:
    for row in range(1, 21):
        passes.database.add(row, row, passes.runs.failed_run(row))
    no = Refused("HTTP 403 PERMISSION_DENIED", status=403)
    passes.runs.says = lambda call, _job: no if call is Call.REPAIR else None
    for _ in range(3):
        with pytest.raises(AllStartsRefused):
            passes.run()
        passes.wait()
    assert set(passes.statuses()) == {"WAITING"}
    passes.runs.says = lambda _call, _job: None
    passes.run()
    assert set(passes.statuses()) == {"SCHEDULED"}
    assert passes.runs.count(Call.RUN_NOW) == 0


def test_reads_that_go_well_prove_nothing_about_starts(passes: Passes) -> None:
    """The right to see a run is not the right to start one."""
    for row in range(1, 21):
        run_id = passes.runs.failed_run(row)
        passes.runs.runs[run_id].life_cycle, passes.runs.runs[run_id].result = "RUNNING", None
        passes.database.add(row, row, run_id)
    for row in range(21, 31):
        passes.database.add(row, row)
    passes.runs.says = forbidden()
    with pytest.raises(AllStartsRefused):
        passes.run()
    assert "FAILED" not in passes.statuses()


def test_a_refusal_that_is_held_is_nobodys_fault_when_the_credentials_fail(single: Passes) -> None:
    single.add(1, 2)
    single.runs.says = lambda call, job: unknown()(call, job) if job == 1 else AuthenticationFailed("who", status=401)
    with pytest.raises(AuthenticationFailed):
        single.run()
    assert single.statuses() == ["WAITING", "WAITING"]


@pytest.mark.parametrize("after", [False, True])
def test_the_reason_has_the_workspaces_words_beside_the_lost_answer(single: Passes, after: bool) -> None:  # noqa: FBT001
    """Also when another dispatcher took over between the two."""
    single.add(1)
    answers: list[ProcessManagerError] = [WorkspaceUnavailable("HTTP 503", status=503)]
    single.runs.says = lambda call, job: answers.pop() if call is Call.RUN_NOW and answers else unknown()(call, job)
    if after:
        single.settings = replace(single.settings, call_tries=1)
        with pytest.raises(WorkspaceUnavailable):
            single.run()
        single.wait()
    single.run()
    assert single.statuses() == ["FAILED"]
    message = single.database.rows[1].message
    assert "Job 1 does not exist." in message
    assert "answer was lost" in message


def test_the_stretches_of_one_dispatch_share_what_was_seen(single: Passes) -> None:
    single.add(1, 2)
    single.database.add(3, 3, single.runs.failed_run(3))
    dispatch = Dispatch(InMemoryControlPlane(single.database, single.settings), single.runs, single.settings)
    claimed = dispatch.claim(dispatch.read())
    sent = dispatch.send(claimed.new)
    single.runs.says = lambda call, _run: Refused("HTTP 403 X", status=403) if call is Call.GET_RUN else None
    dispatch.look_up_repairs(claimed.repair)
    dispatch.close(claimed.new + claimed.repair, sent)
    assert single.statuses() == ["SCHEDULED", "SCHEDULED", "FAILED"]


def _work(row: int, job: int, *, reading: bool = False) -> Work:
    """A row on its way to its call."""
    entry = Entry(row, row, 1, Branch.NEW, EntryState.SENDING, job, 7 if reading else None, {}, "t")
    return Work(entry, LookUp() if reading else StartRun())


def _refuse(breaker: RefusalBreaker, row: int, job: int) -> Decision:
    """A second 403 for a row; gives what is decided, which is carried out."""
    error = Refused(f"HTTP 403 no right on job {job}", status=403)
    work = _work(row, job)
    work.refusals[Call.RUN_NOW] = 2
    breaker.note(work, error)
    facts = Facts(proven=breaker.proves(work, error))
    decided = decide(work, Answer(None, error, 0.0), facts, POLICY)
    if isinstance(decided, Hold):
        breaker.hold(work, decided)
    else:
        breaker.discard(work)
    return decided


def _succeed(breaker: RefusalBreaker, row: int, job: int, *, reading: bool = False) -> list[Decision]:
    """A call of a row goes well; gives what that decides about the refusals that were held."""
    decided: list[Decision] = []
    for held in breaker.note(_work(row, job, reading=reading), None):
        decided.append(after_witness(held, job, POLICY))
        if isinstance(decided[-1], Quarantine):
            breaker.prove(held)
    return decided


def _breaker() -> RefusalBreaker:
    return RefusalBreaker(0.0, lambda: 0.0)


def test_a_job_of_which_another_row_was_taken_is_not_forbidden() -> None:
    breaker = _breaker()
    _refuse(breaker, 1, 1)
    (decided,) = _succeed(breaker, 2, 1)
    assert isinstance(decided, Defer)
    assert "another row of the same job" in decided.reason


def test_a_read_that_goes_well_decides_nothing_about_a_start() -> None:
    breaker = _breaker()
    held = _refuse(breaker, 1, 1)
    assert isinstance(held, Hold)
    assert _succeed(breaker, 2, 2, reading=True) == []
    assert _succeed(breaker, 3, 3) == [Quarantine(held.reason, BY_LATER_SUCCESS)]


def test_what_was_found_true_of_a_job_is_so_for_its_next_row_at_once() -> None:
    breaker = _breaker()
    held = _refuse(breaker, 1, 1)
    assert isinstance(held, Hold)
    _succeed(breaker, 2, 2)
    assert _refuse(breaker, 3, 1) == Quarantine(held.reason, AS_PROVEN)
    assert breaker.affected == set()


def test_a_success_long_before_is_no_witness() -> None:
    breaker = _breaker()
    _succeed(breaker, 1, 9)
    for row, job in ((2, 1), (3, 1), (4, 2)):
        _refuse(breaker, row, job)
    assert breaker.state is BreakerState.CLOSED
    witnesses = breaker.witnesses
    decided = [without_witness(held, witnesses, POLICY, blame=True) for held in breaker.release()]
    assert len(decided) == 3
    assert {type(each) for each in decided} == {Defer}


def test_a_job_that_had_worked_and_is_forbidden_again_and_again_is_suspicious(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="pm_dagster.dispatch")
    breaker = _breaker()
    for job in (1, 2):
        _succeed(breaker, job, job)
    for row in range(10, 16):
        _refuse(breaker, row, 1)
    assert breaker.state is BreakerState.HALF_OPEN
    assert breaker.error is not None
    _succeed(breaker, 20, 2)
    assert [record.message for record in caplog.records] == ["refusal breaker opened", "refusal breaker closed"]
    assert vars(caplog.records[0])["fields"] == {"rows": 5, "jobs": 1, "pause": 0.0}


@pytest.mark.parametrize("says", [unknown(1), forbidden(1)])
def test_a_row_that_is_refused_is_not_left_as_if_something_were_under_way(single: Passes, says: Say) -> None:
    """Whoever rescues it after a death would have to search for a run that was never started."""
    single.add(1, 2)
    seen: list[EntryState] = []

    def watch(call: Call, job: int) -> ProcessManagerError | None:
        if job == 2:
            seen.append(single.record(1).entry.state)
        return says(call, job)

    single.runs.says = watch
    single.run()
    assert seen == [EntryState.CLAIMED]
