"""The connection is lost: at a COMMIT, before and after it took effect, and at every other message.

The same dispatch goes on, and what it wrote is there once: runs, events, attempts.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from itertools import count

import pytest

from pm_dagster.config.settings import Settings
from pm_dagster.dispatch.model import EntryState, Outcome
from pm_dagster.dispatch.ports import Change, Event
from pm_dagster.ledger.control_plane import PostgresControlPlane
from pm_dagster_tests.chaos.deployment import ChaosDeployment, Moment
from pm_dagster_tests.chaos.finishing import assert_clean, story
from pm_dagster_tests.chaos.records import record
from pm_dagster_tests.chaos.wire import Rule, Then, When
from pm_dagster_tests.ledger.postgres_control_table import eventually

#: A piece of SQL by which each kind of transaction is known.
COMMITS = {
    "register": "INSERT INTO process_manager.dispatcher",
    "take over": "picked AS (",
    "refuse": '"state": "QUARANTINED", "job_id"',
    "claim": '"state": "CLAIMED"',
    "intend": "SET state = 'SENDING'",
    "record": '"kind": "answer"',
    "close": "set from WAITING to SCHEDULED",
    "end": "ended_as = 'done'",
}
#: Answers and the next intents, in one message.
_TOGETHER = "ORDER BY v.place;\nWITH intent"
WHEN: tuple[When, ...] = ("before", "after")
_TERMINATE = """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                WHERE application_name = 'process_manager' AND datname = current_database()"""
_THERE = "SELECT pid FROM pg_stat_activity WHERE application_name = 'process_manager' AND datname = current_database()"
#: What one dispatcher can do, ask or hear of an entry only once.
_DOUBLED = """
SELECT e.run_id, v.kind, v.call, count(*) FROM process_manager.event v JOIN process_manager.entry e USING (entry_id)
GROUP BY e.entry_id, e.run_id, v.dispatcher_id, v.kind, v.call HAVING count(*) > 1"""
_WAYS = ("cut", "terminate")
Deployments = Callable[[], AbstractContextManager[ChaosDeployment]]


def a_bit_of_everything(deployment: ChaosDeployment) -> int:
    """Entries to take over, new rows, repairs, a refused row, and a row that is put off, whose id it gives."""
    deployment.add()
    deployment.add_repair(repairs=1)
    doom = deployment.kill_at(Moment("SET state = 'SENDING'", "commit", "after"))
    deployment.dispatch(PM_CONCURRENCY="16")
    deployment.front.clear()
    assert doom.fired.wait(30)
    deployment.forget_the_dead()
    deployment.add(2)
    for repairs in (0, 2):
        deployment.add_repair(repairs=repairs)
    deployment.add(job_id=None)
    (busy,) = deployment.add()
    code, message = "RESOURCE_CONFLICT", "The job has as many runs as it may have."
    match = f'"RUN_ID": "{busy}"'
    deployment.workspace.faults.add(
        "run-now", "status", status=409, code=code, message=message, match=match, count=None
    )
    return busy


def cut() -> Then:
    """Break the connection there and then."""
    return "cut"


def terminate(deployment: ChaosDeployment) -> Then:
    """End the backend; the dispatch hears of it with its next word."""
    deployment.sql(_TERMINATE)
    eventually(lambda: deployment.sql(_THERE) == [], "the backend is gone")
    return "go on"


def assert_done_once(deployment: ChaosDeployment, busy: int) -> None:
    """The dispatch ended well, by itself, and wrote everything once."""
    assert deployment.started[-1].process.exitcode == 0, story(deployment)
    assert_clean(
        deployment,
        may_wait=[busy],
        may_fail=deployment.sql("SELECT run_id FROM mm_run_plc WHERE wkf_job_id IS NULL")[0],
    )
    assert deployment.sql(_DOUBLED) == [], story(deployment)
    attempts = "SELECT attempts FROM process_manager.entry WHERE run_id = %s"
    assert deployment.sql(attempts, (busy,)) == [(1,)], story(deployment)


@pytest.mark.parametrize("when", WHEN)
def test_every_commit_of_one_dispatch_is_lost_once(chaos: ChaosDeployment, when: When) -> None:
    busy = a_bit_of_everything(chaos)
    lost = {kind: chaos.front.add(Rule(text, cut, when, "commit")) for kind, text in COMMITS.items()}
    chaos.dispatch()
    assert [kind for kind, rule in lost.items() if not rule.fired.wait(10)] == []
    assert_done_once(chaos, busy)


@pytest.mark.parametrize("when", WHEN)
def test_the_commit_of_answers_and_the_next_intents_is_lost(chaos: ChaosDeployment, when: When) -> None:
    busy = a_bit_of_everything(chaos)
    lost = chaos.front.add(Rule(_TOGETHER, cut, when, "commit"))
    chaos.dispatch(PM_CONCURRENCY="2")
    assert lost.fired.wait(10), story(chaos)
    assert_done_once(chaos, busy)


@pytest.mark.parametrize("when", WHEN)
def test_the_commit_of_a_redrive_is_lost(chaos: ChaosDeployment, when: When) -> None:
    """Whoever types it again gets the row back to WAITING once, and the event once."""
    (row,) = chaos.add(job_id=999_999)
    chaos.dispatch()
    assert chaos.statuses() == {row: "FAILED"}
    chaos.front.add(Rule("WITH refused AS", cut, when, "commit"))
    codes = [chaos.dispatch("redrive", str(row)).process.exitcode for _ in range(2)]
    assert codes == [1, 0]
    assert chaos.statuses() == {row: "WAITING"}
    assert chaos.sql("SELECT count(*) FROM process_manager.event WHERE kind = 'redriven'") == [(1,)]


@pytest.mark.parametrize("when", WHEN)
def test_the_commit_of_an_upgrade_is_lost(chaos: ChaosDeployment, when: When) -> None:
    """`pm init` says that the database was lost; typed again, the ledger is as it should be."""
    chaos.sql("DROP SCHEMA process_manager CASCADE")
    chaos.front.add(Rule("CREATE TABLE process_manager.entry", cut, when, "commit"))
    first, again = chaos.dispatch("init"), chaos.dispatch("init")
    assert (first.process.exitcode, again.process.exitcode) == (1, 0), first.err + again.err
    assert "the database does not answer" in first.err
    chaos.add()
    assert chaos.dispatch().process.exitcode == 0
    assert_clean(chaos, may_fail=())


@pytest.mark.chaos
@pytest.mark.parametrize("way", _WAYS)
@pytest.mark.parametrize("when", WHEN)
def test_the_connection_is_lost_at_every_message(deployments: Deployments, when: When, way: str) -> None:
    """One dispatch after the other, each loses its connection one message later."""
    for skip in count():
        with deployments() as deployment:
            busy = a_bit_of_everything(deployment)
            lose = cut if way == "cut" else partial(terminate, deployment)
            rule = deployment.front.add(Rule("", lose, when, skip=skip))
            deployment.dispatch()
            if not rule.met > skip:
                break
            assert_done_once(deployment, busy)
    assert skip > 50
    record("postgres", f"connection lost at every message: {way}, {when}", {"broken": 0}, {"messages": skip})


def test_an_heir_settles_what_the_lost_commit_announced(chaos: ChaosDeployment) -> None:
    """Its lock is gone with the connection: what another dispatcher has let go meanwhile is not sent any more."""
    (row,) = chaos.add()
    heir = PostgresControlPlane(Settings(postgres_url=chaos.database_url), "heir")

    def inherit() -> Then:
        terminate(chaos)
        chaos.sql("UPDATE mm_run_plc SET run_sttus_name = 'HELD'")
        (entry,) = heir.rescue(10)
        heir.record([Change(entry.entry_id, (Event("withdrawn"),), EntryState.WITHDRAWN, Outcome.WITHDRAWN)])
        return "cut"

    lost = chaos.front.add(Rule(COMMITS["intend"], inherit, "after", "commit"))
    done = chaos.dispatch("dispatch", "--json")
    heir.end()
    assert lost.fired.is_set(), story(chaos)
    assert done.process.exitcode == 0, story(chaos)
    assert json.loads(done.out)["withdrawn"] == 1
    assert chaos.workspace.log.count("run-now") == 0, story(chaos)
    assert chaos.statuses() == {row: "HELD"}
