"""A ledger that wakes up elsewhere asks once what became of it, and nothing is dispatched before.

Databases are copied as their server copies them, and as a dump does: with the ledger's identity in them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace

import psycopg2
import pytest
from psycopg2.extensions import make_dsn

from pm_dagster.config.settings import Settings
from pm_dagster.errors import ConfigurationError
from pm_dagster.ledger.control_plane import PostgresControlPlane
from pm_dagster.ledger.migrate import initialise
from pm_dagster.ledger.schema import LEDGER_VERSION
from pm_dagster.orchestration.automation import _tick
from pm_dagster.orchestration.resources import ControlTable
from pm_dagster.sandbox.postgres import EmbeddedPostgres
from pm_dagster_tests.cli.shell import Shell

_names = (f"copy_{number}" for number in itertools.count())


@pytest.fixture
def copied(postgres: EmbeddedPostgres, shell: Shell) -> Iterator[Callable[[], Shell]]:
    """Copies the database, with all that is in it; the workspace stays the same."""
    made: list[str] = []

    def copy() -> Shell:
        made.append(next(_names))
        original = psycopg2.extensions.parse_dsn(shell.database_url)["dbname"]
        return replace(shell, database_url=postgres.create_database(made[-1], template=original))

    yield copy
    for name in made:
        postgres.drop_database(name)


def _runs(shell: Shell) -> list[tuple[str, str]]:
    return sorted((run.parameters["RUN_ID"], run.parameters["FILE_NAME"]) for run in shell.workspace.state.runs())


def _identity(shell: Shell) -> tuple[object, ...]:
    return shell.sql("SELECT environment, made_database, made_at FROM process_manager.identity")[0]


def test_a_copied_database_dispatches_nothing_and_says_where_it_was_made(
    shell: Shell, copied: Callable[[], Shell]
) -> None:
    (row,) = shell.add()
    copy = copied()

    done = copy.pm("dispatch")

    assert done.returncode == 1
    for words in ("was made in database test_", "is now in database copy_", "--moved", "--copy"):
        assert words in done.stderr
    assert list(shell.workspace.state.runs()) == []
    assert copy.statuses() == {"WAITING": 1}
    assert "is now in database copy_" in copy.pm("status").stdout
    assert "is now in database copy_" in copy.json("status")["question"]
    assert "Nothing is dispatched: the ledger was made in" in copy.pm("explain", str(row)).stdout
    checks = {check["check"]: check for check in copy.json_and_code(1, "doctor")["checks"]}
    assert not checks["place of the ledger"]["ok"]
    assert "--copy" in checks["place of the ledger"]["remedy"]
    assert shell.json("status")["question"] == ""
    assert shell.json("doctor")["ok"]


def test_the_sensor_fails_and_starts_no_run(shell: Shell, copied: Callable[[], Shell]) -> None:
    shell.add()
    settings = Settings(postgres_url=copied().database_url)
    table = ControlTable(lambda: (PostgresControlPlane(settings, "test"), settings))
    import dagster as dg  # noqa: PLC0415 the other tests here do without

    with dg.DagsterInstance.ephemeral() as instance, pytest.raises(Exception, match="--moved") as caught:
        _tick(instance, table)
    table.end()
    assert not isinstance(caught.value, AssertionError)


def test_a_copy_gets_an_identity_of_its_own_and_runs_its_rows_for_itself(
    shell: Shell, copied: Callable[[], Shell]
) -> None:
    shell.add(2)
    copy = copied()
    identity = _identity(copy)

    assert "identity of its own" in copy.pm("init", "--copy").stdout

    answered = _identity(copy)
    assert answered[0] != identity[0]
    assert copy.json("dispatch")["scheduled"] == 2
    assert shell.json("dispatch")["scheduled"] == 2
    # Each database has its own run for each row: neither took the other's for its own.
    assert _runs(shell) == [("1", "file.csv")] * 2 + [("2", "file.csv")] * 2
    for again in (("init", "--copy"), ("init", "--copy"), ("init",), ("init", "--moved")):
        assert copy.pm(*again).returncode == 0
        assert _identity(copy) == answered
    assert shell.json("init") == {"before": LEDGER_VERSION, "after": LEDGER_VERSION, "answered": False, "question": ""}


def test_a_moved_ledger_goes_on_with_its_identity(shell: Shell, copied: Callable[[], Shell]) -> None:
    """What was sent before the move is met again by the same token."""
    shell.add()
    shell.workspace.faults.add("run-now", "status", status=503, when="after", count=None)
    shell.pm("dispatch", PM_CALL_TRIES="1", PM_SETTLE_SECONDS="0")
    assert len(shell.workspace.state.runs()) == 1
    shell.workspace.faults.clear()
    moved = copied()
    environment = _identity(moved)[0]

    assert moved.json("init", "--moved")["answered"]

    assert _identity(moved)[0] == environment
    assert moved.json("dispatch")["scheduled"] == 1
    assert len(shell.workspace.state.runs()) == 1
    assert not moved.json("init", "--moved")["answered"]
    assert moved.json("doctor")["ok"]


def test_what_came_along_open_is_closed_in_a_copy_and_taken_anew(shell: Shell, copied: Callable[[], Shell]) -> None:
    (row,) = shell.add()
    shell.workspace.faults.add("run-now", "status", status=503, when="before", count=None)
    shell.pm("dispatch", PM_CALL_TRIES="1", PM_SETTLE_SECONDS="3000")
    shell.workspace.faults.clear()
    copy = copied()

    copy.json("init", "--copy")

    assert copy.json("dispatch")["scheduled"] == 1
    story = copy.json("explain", str(row))
    assert [entry["state"] for entry in story["generations"]] == ["WITHDRAWN", "SCHEDULED"]
    (told,) = [event for event in story["generations"][0]["events"] if event["kind"] == "withdrawn"]
    assert "came along in a copy of database test_" in told["detail"]


def test_both_answers_at_once_are_refused(shell: Shell) -> None:
    assert shell.pm("init", "--copy", "--moved").returncode == 2


def test_init_alone_says_that_the_question_is_open(shell: Shell, copied: Callable[[], Shell]) -> None:
    shell.add()
    copy = copied()
    before = _identity(copy)
    assert "Nothing is dispatched: the ledger was made in" in copy.pm("init").stdout
    assert _identity(copy) == before
    assert copy.pm("dispatch").returncode == 1


@pytest.mark.parametrize("column", ["made_system", "made_database"])
def test_a_dump_that_is_read_into_another_server_asks(shell: Shell, column: str) -> None:
    """What a dump brings along is the identity as it was recorded in the other server."""
    shell.add()
    statement = {
        "made_system": "UPDATE process_manager.identity SET made_system = '7300000000000000001'",
        "made_database": "UPDATE process_manager.identity SET made_database = 'production'",
    }[column]
    shell.sql(statement)
    assert shell.pm("dispatch").returncode == 1
    assert shell.json("init", "--moved")["answered"]
    assert shell.json("dispatch")["scheduled"] == 1


def test_a_restore_to_another_host_asks_and_a_failover_does_not(shell: Shell) -> None:
    """One server with two names stands for the two hosts; its timeline stays, so the recorded one is changed."""
    shell.add()
    shell.sql("UPDATE process_manager.identity SET made_timeline = '000000AA'")
    assert shell.json("dispatch")["scheduled"] == 1
    shell.add()
    shell.sql("UPDATE process_manager.identity SET made_hosts = '{production.example.com}', made_at = now()")
    assert "another host" in shell.pm("dispatch").stderr
    # Somebody dispatched from here before the timeline changed: this name of the server is known.
    shell.sql("UPDATE process_manager.dispatcher SET started_at = now()")
    assert shell.json("dispatch")["scheduled"] == 1
    # By another name of the same server, and on the timeline on which the ledger was made, nothing is asked.
    shell.add()
    shell.sql("UPDATE process_manager.identity SET made_timeline = left(pg_walfile_name(pg_current_wal_lsn()), 8)")
    shell.sql("UPDATE process_manager.dispatcher SET hosts = NULL")
    assert shell.json("dispatch")["scheduled"] == 1


def test_a_user_who_may_not_read_the_servers_identifier_dispatches(shell: Shell) -> None:
    shell.add()
    shell.sql("REVOKE EXECUTE ON FUNCTION pg_catalog.pg_control_system() FROM PUBLIC")
    shell.sql("REVOKE EXECUTE ON FUNCTION pg_catalog.pg_walfile_name(pg_lsn) FROM PUBLIC")
    shell.sql("CREATE ROLE no_superuser LOGIN SUPERUSER")
    try:
        shell.sql("ALTER ROLE no_superuser NOSUPERUSER")
        shell.sql("GRANT ALL ON ALL TABLES IN SCHEMA process_manager, public TO no_superuser")
        shell.sql("GRANT ALL ON ALL SEQUENCES IN SCHEMA process_manager, public TO no_superuser")
        shell.sql("GRANT USAGE ON SCHEMA process_manager, public TO no_superuser")
        blind = replace(shell, database_url=make_dsn(shell.database_url, user="no_superuser"))
        assert blind.json("dispatch")["scheduled"] == 1
        shell.sql("UPDATE process_manager.identity SET made_database = 'production'")
        assert blind.pm("dispatch").returncode == 1
    finally:
        shell.sql("DROP OWNED BY no_superuser")
        shell.sql("DROP ROLE no_superuser")


def test_a_restored_row_is_met_by_its_run_and_another_row_of_its_number_is_not(shell: Shell) -> None:
    """The database is put back to before the dispatch: one row is as it was, the other number goes to another file."""
    shell.add(2)
    shell.json("dispatch")
    shell.sql("TRUNCATE process_manager.event, process_manager.entry CASCADE")
    shell.sql("UPDATE mm_run_plc SET run_sttus_name = 'WAITING', wkf_job_run_id = NULL")
    shell.sql("UPDATE mm_run_plc SET file_name = 'other.csv', rgstr_file_time = now() WHERE run_id = 2")

    assert shell.json("dispatch")["scheduled"] == 2

    assert _runs(shell) == [("1", "file.csv"), ("2", "file.csv"), ("2", "other.csv")]
    runs = {run.run_id: run.parameters["FILE_NAME"] for run in shell.workspace.state.runs()}
    shown = shell.sql("SELECT file_name, wkf_job_run_id FROM mm_run_plc")
    assert all(runs[run_id] == name for name, run_id in shown)


def test_a_file_that_comes_again_under_a_restored_number_runs(shell: Shell) -> None:
    """The same name, another arrival: other work."""
    shell.add()
    shell.json("dispatch")
    shell.sql("TRUNCATE process_manager.event, process_manager.entry CASCADE")
    shell.sql("UPDATE mm_run_plc SET run_sttus_name = 'WAITING', wkf_job_run_id = NULL, rgstr_file_time = now()")
    shell.json("dispatch")
    assert _runs(shell) == [("1", "file.csv")] * 2


def test_the_identity_is_recorded_once(shell: Shell) -> None:
    before = _identity(shell)
    initialise(Settings(postgres_url=shell.database_url))
    assert _identity(shell) == before
    with closing(psycopg2.connect(shell.database_url)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM process_manager.identity WHERE made_system IS NOT NULL")
        assert cursor.fetchone() == (1,)


def test_the_error_is_one_of_configuration(shell: Shell, copied: Callable[[], Shell]) -> None:
    shell.add()
    control = PostgresControlPlane(Settings(postgres_url=copied().database_url), "test")
    assert len(control.waiting(10)) == 1
    with pytest.raises(ConfigurationError, match="--moved"):
        control.rescue(10)
    control.end()
