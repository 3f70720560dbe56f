"""A dispatcher that dies frees its claims; one that lost its connection goes on where it was."""

from __future__ import annotations

import signal
import subprocess
import sys
from contextlib import closing

import psycopg2
import pytest

from pm_dagster.dispatch.in_doubt import intent_committed
from pm_dagster.dispatch.model import EntryState
from pm_dagster.errors import ControlPlaneUnavailable
from pm_dagster.ledger import session
from pm_dagster.ledger.control_plane import PostgresControlPlane
from pm_dagster_tests.contracts.steps import claim_one, ids, seen, send
from pm_dagster_tests.ledger.postgres_control_table import PostgresControlTable, eventually

_CLAIM_AND_STAY = """
import sys, time
from pm_dagster.dispatch.in_doubt import intent_committed
from pm_dagster.config.settings import Settings
from pm_dagster.dispatch.waiting_job import sort_rows
from pm_dagster.ledger.control_plane import PostgresControlPlane
control = PostgresControlPlane(Settings(postgres_url=sys.argv[1]), actor="victim")
entries = control.claim(sort_rows(control.waiting(10))[0])
control.intend([intent_committed(entries[0])])
print(len(entries), flush=True)
time.sleep(600)
"""


def cut(table: PostgresControlTable, control: PostgresControlPlane) -> None:
    """Let the server end the dispatcher's connection."""
    connection = control._session._connection
    assert connection is not None
    pid = connection.get_backend_pid()
    table.ask("SELECT pg_terminate_backend(%s)", pid)
    eventually(lambda: not table.ask("SELECT FROM pg_stat_activity WHERE pid = %s", pid), "the connection ends")


def expire(table: PostgresControlTable) -> None:
    """Let every lease run out."""
    table.ask("UPDATE process_manager.dispatcher SET lease_until = now() - interval '1 second'")


def test_killing_a_process_frees_its_claims(table: PostgresControlTable) -> None:
    sent, claimed = table.add(age=10), table.add()
    successor = table.dispatcher()
    command = [sys.executable, "-c", _CLAIM_AND_STAY, table.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as victim:
        assert victim.stdout is not None
        assert victim.stdout.readline() == "2\n"
        assert ids(successor) == []
        assert successor.rescue(10) == []
        victim.send_signal(signal.SIGKILL)
    eventually(lambda: ids(successor) == [claimed], "the dead process's claim is free")
    assert [entry.run_id for entry in successor.rescue(10)] == [sent]
    assert table.dispatcher().rescue(10) == [], "a newcomer tidies up"
    assert table.ask("SELECT ended_as FROM process_manager.dispatcher WHERE actor = 'victim'") == [("dead",)]


def test_a_cut_connection_is_made_again_under_the_same_name(table: PostgresControlTable) -> None:
    table.add()
    control = table.dispatcher()
    entry = claim_one(control)
    cut(table, control)
    send(control, entry)
    assert control.close([entry.entry_id])[0].state is EntryState.SCHEDULED
    assert table.ask("SELECT count(*) FROM process_manager.dispatcher") == [(1,)]


def test_reading_goes_on_after_a_cut_connection(table: PostgresControlTable) -> None:
    table.add()
    control = table.dispatcher()
    claim_one(control)
    cut(table, control)
    assert control.backlog().ready == 1, "a dispatcher without its lock holds nothing"
    cut(table, control)
    assert len(control.claim(seen(control))) == 1


def test_what_was_taken_during_a_cut_stays_taken(table: PostgresControlTable) -> None:
    run_id = table.add()
    loser, successor = table.dispatcher(), table.dispatcher()
    entry = claim_one(loser)
    cut(table, loser)
    claim_one(successor)
    assert loser.intend([intent_committed(entry)]) == set()
    assert table.status(run_id) == "WAITING"
    assert table.ledger(run_id) == [(1, "CLAIMED", True)]


def test_leaving_on_a_cut_connection_is_quiet(table: PostgresControlTable) -> None:
    table.add()
    control = table.dispatcher()
    claim_one(control)
    cut(table, control)
    control.end()
    assert len(ids(table.dispatcher())) == 1


def test_a_lease_holds_the_claim_until_it_runs_out(table: PostgresControlTable) -> None:
    run_id = table.add()
    dead, successor = table.dispatcher(liveness="lease"), table.dispatcher(liveness="lease")
    claim_one(dead)
    table.die(dead)
    assert ids(successor) == []
    expire(table)
    assert ids(successor) == [run_id]
    assert len(successor.claim(seen(successor))) == 1


def test_a_heartbeat_renews_the_lease(table: PostgresControlTable) -> None:
    table.add()
    control, other = table.dispatcher(liveness="lease"), table.dispatcher(liveness="lease")
    claim_one(control)
    expire(table)
    control.heartbeat()
    assert ids(other) == []


def test_a_dispatcher_marked_as_dead_lives_again_with_its_heartbeat(table: PostgresControlTable) -> None:
    """A pause longer than the lease must not make everything claimed after it free for others."""
    table.add()
    control, other = table.dispatcher(liveness="lease"), table.dispatcher(liveness="lease")
    claim_one(control)
    expire(table)
    assert other.rescue(10) == []
    assert table.ask("SELECT count(*) FROM process_manager.dispatcher WHERE ended_as = 'dead'") == [(1,)]
    control.heartbeat()
    assert ids(other) == []


def test_a_dispatcher_that_lost_its_connection_lives_again_by_itself(
    table: PostgresControlTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing has to be written: a long call must not make a living dispatcher look dead for as long as it takes."""
    monkeypatch.setattr(session, "_LONGEST_UNSEEN_SECONDS", 0.0)
    control, witness = table.dispatcher(actor="cut"), table.dispatcher()
    control.register()
    cut(table, control)
    assert not witness.signs_of_life(["cut"])["cut"].alive
    control.heartbeat()
    assert witness.signs_of_life(["cut"])["cut"].alive


def test_the_time_unseen_counts_from_the_start_of_the_server_at_the_earliest(table: PostgresControlTable) -> None:
    """After a restart nobody has a session, and the living are about to have one again."""
    witness, dead = table.dispatcher(), table.dispatcher(actor="dead")
    dead.register()
    table.die(dead)
    table.ask("UPDATE process_manager.dispatcher SET started_at = now() - interval '1 year', seen_at = NULL")
    ((uptime,),) = table.ask("SELECT extract(epoch FROM clock_timestamp() - pg_postmaster_start_time())")
    sign = witness.signs_of_life(["dead"])["dead"]
    assert not sign.alive
    assert sign.seconds_ago == pytest.approx(float(uptime), abs=30.0)


def test_one_that_registered_does_so_again_also_when_it_only_reads(table: PostgresControlTable) -> None:
    control, witness = table.dispatcher(actor="cut"), table.dispatcher()
    control.register()
    cut(table, control)
    assert control.waiting(1) == []
    assert witness.signs_of_life(["cut"])["cut"].alive


def test_a_lease_outlasts_the_reading_of_a_slow_view(table: PostgresControlTable) -> None:
    control = table.dispatcher(liveness="lease", lease_seconds=2.0)
    control.register()
    control.waiting(1)
    longest = "SELECT lease_until > clock_timestamp() + interval '60 seconds' FROM process_manager.dispatcher"
    assert table.ask(longest) == [(True,)]


def test_a_sign_of_life_needs_no_write_while_others_are_made(table: PostgresControlTable) -> None:
    control = table.dispatcher()
    control.register()
    before = table.ask("SELECT writes FROM process_manager.dispatcher")
    control.heartbeat()
    assert table.ask("SELECT writes FROM process_manager.dispatcher") == before


def test_a_sign_of_life_that_does_not_get_through_stops_nothing(
    table: PostgresControlTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "_LONGEST_UNSEEN_SECONDS", 0.0)
    table.add()
    control = table.dispatcher()
    entry = claim_one(control)
    with closing(psycopg2.connect(table.url)) as owner, owner.cursor() as cursor:
        cursor.execute("LOCK process_manager.dispatcher IN ACCESS EXCLUSIVE MODE")
        control._session._longest = 0.2
        control.heartbeat()
    assert [found.entry_id for found in control.resume([entry.entry_id])] == [entry.entry_id]


def test_lease_and_lock_dispatchers_respect_each_other(table: PostgresControlTable) -> None:
    table.add(age=10)
    table.add()
    lease, lock = table.dispatcher(liveness="lease"), table.dispatcher(liveness="lock")
    jobs = seen(lease)
    assert len(lease.claim(jobs[:1])) == 1
    assert [entry.run_id for entry in lock.claim(jobs)] == [jobs[1].run_id]


def test_a_database_that_is_gone_is_unavailable(table: PostgresControlTable) -> None:
    control = table.dispatcher(postgres_url="host=127.0.0.1 port=1 dbname=x")
    with pytest.raises(ControlPlaneUnavailable):
        control.waiting(1)
    control.end()
