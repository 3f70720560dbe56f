"""What every ControlPlane promises about rows that cannot be had, for good or at this moment."""

from __future__ import annotations

from pm_dagster.dispatch.in_doubt import intent_committed
from pm_dagster.dispatch.waiting_job import sort_rows
from pm_dagster_tests.contracts.control_table import ControlTable
from pm_dagster_tests.contracts.steps import claim_one, ids, seen, send


def test_a_row_that_only_the_view_calls_waiting_is_named_and_not_read(table: ControlTable) -> None:
    table.loosen_view()
    loose, good = table.add(status="Waiting", age=1000), table.add(age=10)
    control = table.dispatcher()
    assert ids(control) == ids(control, limit=1) == [good]
    (told,) = control.untakeable(10)
    assert (told.run_id, told.settled) == (loose, False)
    assert "'Waiting'" in told.reason
    assert "PM_STATUS_WAITING" in told.remedy
    assert control.untakeable(10, [good]) == []
    assert [row.run_id for row in control.untakeable(10, [loose])] == [loose]
    backlog = control.backlog()
    assert (backlog.ready, backlog.untakeable) == (1, 1)
    assert backlog.oldest_seconds is not None
    assert backlog.oldest_seconds < 500
    assert [entry.run_id for entry in control.claim(seen(control))] == [good]


def test_a_row_that_became_loose_is_named_though_a_dead_dispatcher_had_claimed_it(table: ControlTable) -> None:
    table.loosen_view()
    run_id = table.add()
    dead, control = table.dispatcher(), table.dispatcher()
    claim_one(dead)
    table.set_status(run_id, "waiting")
    assert control.untakeable(10) == []
    table.die(dead)
    assert [row.run_id for row in control.untakeable(10)] == [run_id]
    assert control.backlog().ready == 0


def test_the_next_rows_are_those_that_were_not_seen(table: ControlTable) -> None:
    """Also those that are locked: a reader that asked for locks would hide them from another one."""
    rows = [table.add(age=100 - number) for number in range(5)]
    control = table.dispatcher()
    with table.locked(rows[1]):
        assert [row.run_id for row in control.waiting(2, rows[:1])] == [rows[1], rows[2]]
        assert ids(control, limit=2) == rows[:2]
    assert [row.run_id for row in control.waiting(2, rows[:1])] == [rows[1], rows[2]]
    assert control.waiting(10, rows) == []


def test_reading_the_next_rows_takes_nothing(table: ControlTable) -> None:
    run_id = table.add()
    first, second = table.dispatcher(), table.dispatcher()
    assert [row.run_id for row in first.waiting(1, [])] == [run_id]
    assert len(second.claim(seen(second))) == 1
    assert first.waiting(1, []) == []


def test_there_is_work_when_a_row_can_be_taken_or_a_dead_dispatcher_left_one(table: ControlTable) -> None:
    first, second = table.dispatcher(), table.dispatcher()
    assert not first.has_work()
    table.add()
    assert first.has_work()
    (entry,) = first.claim(seen(first))
    assert not second.has_work()
    first.intend([intent_committed(entry)])
    assert not second.has_work(ours=True)
    assert (first.has_work(), first.has_work(ours=True)) == (False, True)
    table.die(first)
    assert second.has_work()


def test_rows_that_are_all_locked_are_not_ready_but_counted(table: ControlTable) -> None:
    held, free = table.add(age=100), table.add()
    control = table.dispatcher()
    with table.locked(held):
        assert control.held([held, free]) == {held}
        assert control.backlog().ready > 0
        assert [entry.run_id for entry in control.claim(seen(control))] == [free]
        backlog = table.dispatcher().backlog()
        assert (backlog.ready, backlog.locked, backlog.oldest_seconds) == (0, 1, None)
        assert backlog.untakeable == 0
    assert control.held([held]) == set()
    assert table.dispatcher().backlog().ready == 1


def test_an_answer_whose_row_is_locked_calls_for_no_dispatch(table: ControlTable) -> None:
    run_id = table.add()
    dead, rescuer = table.dispatcher(), table.dispatcher()
    send(dead, claim_one(dead))
    table.die(dead)
    with table.locked(run_id):
        assert (rescuer.backlog().ready, rescuer.backlog().locked) == (0, 1)
        left = rescuer.rescue(10)
        rescuer.close([entry.entry_id for entry in left])
        assert len(left) == 1
    assert rescuer.close([entry.entry_id for entry in left])[0].control_status == "SCHEDULED"


def test_a_call_in_doubt_calls_for_a_dispatch_whoever_holds_its_row(table: ControlTable) -> None:
    run_id = table.add()
    dead, rescuer = table.dispatcher(), table.dispatcher()
    dead.intend([intent_committed(claim_one(dead))])
    table.die(dead)
    with table.locked(run_id):
        assert rescuer.backlog().ready == 1


def test_what_is_shown_still_waits(table: ControlTable) -> None:
    good, gone, broken = table.add(), table.add(status="RUNNING"), table.add(job_id=None)
    control = table.dispatcher()
    jobs, refused = sort_rows(control.shown([good, gone, broken, 10**9]))
    assert ([job.run_id for job in jobs], [row.run_id for row in refused]) == ([good], [broken])
    assert control.shown([]) == []


def test_a_refusal_tells_what_it_refused(table: ControlTable) -> None:
    bad, mended = table.add(job_id=None), table.add(job_id=None)
    control = table.dispatcher()
    _, refused = sort_rows(control.waiting(10))
    table.correct(mended, 1001)
    assert [row.run_id for row in control.refuse(refused)] == [bad]
    assert control.refuse(refused) == []
