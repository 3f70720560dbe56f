"""What every ControlPlane promises about reading, claiming and taking over."""

from __future__ import annotations

from pm_dagster.dispatch.in_doubt import intent_committed
from pm_dagster.dispatch.model import EntryState
from pm_dagster.dispatch.waiting_job import Branch, sort_rows
from pm_dagster_tests.contracts.control_table import ControlTable
from pm_dagster_tests.contracts.steps import claim_one, ids, seen, send


def test_waiting_shows_rows_oldest_first_up_to_the_limit(table: ControlTable) -> None:
    young, old, middle = table.add(age=10), table.add(age=1000), table.add(age=100)
    control = table.dispatcher()
    assert ids(control) == [old, middle, young]
    assert ids(control, limit=2) == [old, middle]


def test_waiting_takes_nothing(table: ControlTable) -> None:
    table.add()
    first, second = table.dispatcher(), table.dispatcher()
    assert ids(first) == ids(first) == ids(second)
    assert len(second.claim(seen(second))) == 1


def test_a_claim_carries_the_job_as_it_was_read(table: ControlTable) -> None:
    run_id = table.add(job_id=2**53 + 1, previous=2**60 + 1)
    entry = claim_one(table.dispatcher())
    assert (entry.run_id, entry.job_id, entry.previous_run_id) == (run_id, 2**53 + 1, 2**60 + 1)
    assert (entry.branch, entry.state, entry.generation) == (Branch.REPAIR, EntryState.CLAIMED, 1)
    assert entry.waiting
    assert not entry.ambiguous
    assert len(entry.idempotency_token) == 64
    assert entry.parameters == {"RUN_ID": str(run_id), "CNTRT_ID": "7", "FILE_NAME": "orders.csv"}


def test_a_row_is_claimed_by_one_of_two_dispatchers(table: ControlTable) -> None:
    table.add()
    first, second = table.dispatcher(), table.dispatcher()
    jobs = seen(second)
    assert len(first.claim(jobs)) == 1
    assert second.claim(jobs) == []
    assert ids(second) == []
    assert second.rescue(10) == []


def test_claiming_again_gives_the_same_entry_and_token(table: ControlTable) -> None:
    table.add()
    control = table.dispatcher()
    jobs = seen(control)
    (first,), (second,) = control.claim(jobs), control.claim(jobs)
    assert (first.entry_id, first.generation, first.idempotency_token) == (
        second.entry_id,
        second.generation,
        second.idempotency_token,
    )


def test_claiming_nothing_is_nothing(table: ControlTable) -> None:
    assert table.dispatcher().claim([]) == []


def test_a_row_that_left_waiting_is_not_claimed(table: ControlTable) -> None:
    run_id = table.add()
    control = table.dispatcher()
    jobs = seen(control)
    table.set_status(run_id, "RUNNING")
    assert control.claim(jobs) == []


def test_a_claim_takes_the_row_as_it_is_now(table: ControlTable) -> None:
    """What was read may be hours old when a run is executed again."""
    run_id = table.add(job_id=1001)
    control = table.dispatcher()
    jobs = seen(control)
    table.correct(run_id, 1002)
    (entry,) = control.claim(jobs)
    assert entry.job_id == 1002


def test_a_row_that_became_unreadable_is_not_claimed(table: ControlTable) -> None:
    run_id = table.add()
    control = table.dispatcher()
    jobs = seen(control)
    table.correct(run_id, None)
    assert control.claim(jobs) == []


def test_a_row_that_was_mended_is_not_refused(table: ControlTable) -> None:
    run_id = table.add(job_id=None)
    control = table.dispatcher()
    _, refused = sort_rows(control.waiting(10))
    table.correct(run_id, 1001)
    control.refuse(refused)
    assert table.status(run_id) == "WAITING"
    assert claim_one(control).generation == 1


def test_tokens_differ_between_rows(table: ControlTable) -> None:
    table.add()
    table.add()
    control = table.dispatcher()
    assert len({entry.idempotency_token for entry in control.claim(seen(control))}) == 2


def test_a_dead_dispatchers_unsent_claim_is_free_at_once(table: ControlTable) -> None:
    run_id = table.add()
    dead, rescuer = table.dispatcher(), table.dispatcher()
    before = claim_one(dead)
    assert ids(rescuer) == []
    table.die(dead)
    assert ids(rescuer) == [run_id]
    after = claim_one(rescuer)
    assert (after.entry_id, after.generation) == (before.entry_id, 1)
    assert after.idempotency_token == before.idempotency_token


def test_a_dispatcher_that_left_frees_its_unsent_claims(table: ControlTable) -> None:
    run_id = table.add()
    leaver, rescuer = table.dispatcher(), table.dispatcher()
    claim_one(leaver)
    leaver.end()
    assert ids(rescuer) == [run_id]


def test_an_end_may_be_said_twice_and_before_the_beginning(table: ControlTable) -> None:
    control = table.dispatcher()
    control.end()
    table.add()
    claim_one(control)
    control.end()
    control.end()


def test_a_sent_row_of_a_dead_dispatcher_is_taken_over_not_claimed_anew(table: ControlTable) -> None:
    table.add()
    dead, rescuer = table.dispatcher(), table.dispatcher()
    jobs = seen(rescuer)
    entry = claim_one(dead)
    dead.intend([intent_committed(entry)])
    assert rescuer.rescue(10) == []
    table.die(dead)
    assert ids(rescuer) == []
    assert rescuer.claim(jobs) == []
    (rescued,) = rescuer.rescue(10)
    assert (rescued.entry_id, rescued.state) == (entry.entry_id, EntryState.SENDING)
    assert rescued.idempotency_token == entry.idempotency_token
    assert rescued.ambiguous
    assert rescued.rescued
    assert not entry.rescued
    assert rescued.intent_at is not None


def test_a_taken_over_row_is_taken_over_once(table: ControlTable) -> None:
    table.add()
    dead, rescuer, late = table.dispatcher(), table.dispatcher(), table.dispatcher()
    entry = claim_one(dead)
    dead.intend([intent_committed(entry)])
    table.die(dead)
    assert len(rescuer.rescue(10)) == 1
    assert late.rescue(10) == []


def test_take_over_finds_rows_that_left_the_view(table: ControlTable) -> None:
    run_id = table.add()
    dead, rescuer = table.dispatcher(), table.dispatcher()
    dead.intend([intent_committed(claim_one(dead))])
    table.set_status(run_id, "RUNNING")
    table.die(dead)
    (rescued,) = rescuer.rescue(10)
    assert not rescued.waiting


def test_take_over_keeps_to_its_limit(table: ControlTable) -> None:
    for _ in range(5):
        table.add()
    dead, rescuer = table.dispatcher(), table.dispatcher()
    dead.intend([intent_committed(entry) for entry in dead.claim(seen(dead))])
    table.die(dead)
    assert len(rescuer.rescue(3)) == 3


def test_a_dead_dispatchers_answer_is_closed_by_its_rescuer(table: ControlTable) -> None:
    run_id = table.add()
    dead, rescuer = table.dispatcher(), table.dispatcher()
    entry = claim_one(dead)
    send(dead, entry)
    table.die(dead)
    (rescued,) = rescuer.rescue(10)
    assert rescued.state is EntryState.ACCEPTED
    (closed,) = rescuer.close([rescued.entry_id])
    assert (closed.state, closed.accepted_run_id, closed.control_status) == (EntryState.SCHEDULED, 5, "SCHEDULED")
    assert table.status(run_id) == "SCHEDULED"


def test_the_repair_intent_survives_its_dispatcher(table: ControlTable) -> None:
    table.add(previous=77)
    dead, rescuer = table.dispatcher(), table.dispatcher()
    dead.intend([intent_committed(claim_one(dead), latest_repair_id=2**53 + 3)])
    table.die(dead)
    assert rescuer.rescue(10)[0].sent_repair_id == 2**53 + 3


def test_a_fresh_run_intent_survives_its_dispatcher(table: ControlTable) -> None:
    table.add(previous=77)
    dead, rescuer = table.dispatcher(), table.dispatcher()
    dead.intend([intent_committed(claim_one(dead), fresh_run=True)])
    table.die(dead)
    (rescued,) = rescuer.rescue(10)
    assert rescued.fresh_run
    assert rescued.starts_new_run


def test_resume_gives_ours_as_they_stand_and_not_anothers(table: ControlTable) -> None:
    table.add()
    ours, other = table.dispatcher(), table.dispatcher()
    entry = claim_one(ours)
    assert other.resume([entry.entry_id]) == []
    ours.intend([intent_committed(entry)])
    (resumed,) = ours.resume([entry.entry_id])
    assert resumed.state is EntryState.SENDING
    assert ours.resume([]) == []
    assert ours.resume([10**9]) == []


def test_resume_takes_over_a_dead_dispatchers_claim(table: ControlTable) -> None:
    table.add()
    dead, rescuer = table.dispatcher(), table.dispatcher()
    entry = claim_one(dead)
    table.die(dead)
    assert [e.entry_id for e in rescuer.resume([entry.entry_id])] == [entry.entry_id]


def test_a_claim_resumed_later_takes_the_row_as_it_is_then(table: ControlTable) -> None:
    """A re-execution from failure may come hours later: the row was corrected, or a run of it is to be repaired."""
    corrected, run_since, broken, gone = (table.add() for _ in range(4))
    control = table.dispatcher()
    entries = control.claim(seen(control))
    control.end()
    table.correct(corrected, 2002)
    table.name_run(run_since, 555)
    table.correct(broken, None)
    table.set_status(gone, "HELD")
    rescuer = table.dispatcher()
    resumed = {entry.run_id: entry for entry in rescuer.resume([entry.entry_id for entry in entries])}
    assert sorted(resumed) == [corrected, run_since, gone]
    assert (resumed[corrected].job_id, resumed[corrected].generation) == (2002, 1)
    assert resumed[corrected].idempotency_token != entries[0].idempotency_token
    assert (resumed[run_since].branch, resumed[run_since].previous_run_id) == (Branch.REPAIR, 555)
    assert not resumed[gone].waiting
    rescuer.end()
    late = table.dispatcher()
    late.refuse(sort_rows(late.waiting(10))[1])
    assert table.status(broken) == "FAILED"


def test_what_was_sent_is_resumed_as_it_was_sent(table: ControlTable) -> None:
    run_id = table.add()
    control = table.dispatcher()
    entry = claim_one(control)
    control.intend([intent_committed(entry)])
    control.end()
    table.correct(run_id, 2002)
    (resumed,) = table.dispatcher().resume([entry.entry_id])
    assert (resumed.job_id, resumed.idempotency_token) == (1001, entry.idempotency_token)
