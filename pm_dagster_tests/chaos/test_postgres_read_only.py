"""A database that takes no writes: a standby, a setting, a failover under way. Nothing is sent, and it is said why."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from importlib.resources import files
from pathlib import Path

import psycopg2
import pytest
from psycopg2 import sql
from psycopg2.extensions import make_dsn, parse_dsn

from pm_dagster.config.settings import Settings
from pm_dagster.errors import ProcessManagerError, Unavailable
from pm_dagster.ledger.control_plane import PostgresControlPlane
from pm_dagster.ledger.migrate import initialise
from pm_dagster.sandbox.postgres import EmbeddedPostgres, run_program
from pm_dagster.sandbox.workspace import LocalWorkspace
from pm_dagster_tests.chaos import audit
from pm_dagster_tests.chaos.deployment import ChaosDeployment, Moment, chaos_deployment
from pm_dagster_tests.chaos.finishing import assert_clean, finish
from pm_dagster_tests.cli.shell import JOB, Shell
from pm_dagster_tests.ledger.postgres_control_table import eventually


def _with_control_table(server: EmbeddedPostgres) -> str:
    url = server.create_database("own")
    with closing(psycopg2.connect(url)) as connection, connection, connection.cursor() as cursor:
        cursor.execute(files("pm_dagster.sandbox").joinpath("control_schema.sql").read_text())
    initialise(Settings(postgres_url=url))
    return url


def _reloaded(url: str, statement: str) -> None:
    """Run a statement that ends at the server's configuration."""
    with closing(psycopg2.connect(url)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute("SET default_transaction_read_only = off")
            cursor.execute(statement)
            cursor.execute("SELECT pg_reload_conf()")


@pytest.fixture
def workspace() -> Iterator[LocalWorkspace]:
    """A workspace with one job."""
    with LocalWorkspace() as made:
        made.state.add_job("ingest", job_id=JOB, seconds=None, max_concurrent_runs=10_000)
        yield made


@pytest.mark.slow
def test_a_standby_until_it_is_promoted(tmp_path: Path, workspace: LocalWorkspace) -> None:
    with EmbeddedPostgres(tmp_path / "a", durable=False) as primary:
        deployment = Shell(_with_control_table(primary), workspace)
        deployment.add(3)
        host, port = (str(parse_dsn(primary.url)[part]) for part in ("host", "port"))
        arguments = ("-D", str(tmp_path / "b"), "-h", host, "-p", port, "-U", "postgres", "-R", "--no-sync", "-cfast")
        with (primary.data_dir / "pg_hba.conf").open("a") as hba:
            hba.write("local replication all trust\n")
        _reloaded(primary.url, "SELECT 1")
        run_program("pg_basebackup", *arguments, folder=tmp_path)
        (tmp_path / "b" / ".s.PGSQL.5432.lock").unlink()
        with EmbeddedPostgres(tmp_path / "b", durable=False) as standby:
            beside = Shell(standby.database_url("own"), workspace)
            _says_why_and_sends_nothing(beside, "it is a standby: name the primary")
            assert beside.json("status")["backlog"]["ready"] == 3, "reading goes on"
            both = make_dsn(
                f"host={parse_dsn(standby.url)['host']},{host} port=5432,5432 dbname=own user=postgres",
                target_session_attrs="read-write",
            )
            assert Shell(both, workspace).pm("dispatch").returncode == 0
            assert deployment.statuses() == {"SCHEDULED": 3}
            deployment.add(1)
            eventually(lambda: sum(beside.statuses().values()) == 4, "the standby has the row")
            primary.stop("immediate")
            refused = Shell(make_dsn(beside.database_url, target_session_attrs="read-write"), workspace).pm("dispatch")
            assert refused.returncode == 1
            assert "no database server is as target_session_attrs (targetServerType) asks" in refused.stderr
            run_program("pg_ctl", "-D", str(tmp_path / "b"), "-w", "promote", folder=tmp_path / "b")
            assert beside.json("doctor")["ok"]
            assert beside.pm("dispatch").returncode == 0
            assert beside.statuses() == {"SCHEDULED": 4}
    assert sorted(deployment.runs_per_row()) == [1, 1, 1, 1]


def _says_why_and_sends_nothing(deployment: Shell, why: str) -> None:
    checks = {check["check"]: check for check in deployment.json_and_code(1, "doctor")["checks"]}
    assert not checks["writes"]["ok"]
    assert why in checks["writes"]["found"]
    for command in (("dispatch",), ("redrive", "1")):
        done = deployment.pm(*command)
        assert "is read-only" in done.stderr, done
        assert "does not answer" not in done.stderr
    assert deployment.runs_per_row() == []
    control = PostgresControlPlane(Settings(postgres_url=deployment.database_url), "test")
    with pytest.raises(Unavailable, match="the database is read-only"):
        control.rescue(1)
    control.end()


@pytest.mark.parametrize(
    ("statement", "whose"),
    [
        ("ALTER DATABASE {} SET default_transaction_read_only = on", "a setting of this database"),
        ("ALTER ROLE postgres IN DATABASE {} SET default_transaction_read_only = on", "of this user in this database"),
    ],
)
def test_a_setting_of_the_owner(chaos_database: str, workspace: LocalWorkspace, statement: str, whose: str) -> None:
    deployment = Shell(chaos_database, workspace)
    deployment.add(3)
    name = sql.Identifier(str(parse_dsn(chaos_database)["dbname"]))
    with closing(psycopg2.connect(chaos_database)) as connection, connection, connection.cursor() as cursor:
        cursor.execute(sql.SQL(statement).format(name))
    _says_why_and_sends_nothing(deployment, whose)


def test_a_setting_of_the_connection(chaos_database: str, workspace: LocalWorkspace) -> None:
    Shell(chaos_database, workspace).add(3)
    deployment = Shell(make_dsn(chaos_database, options="-c default_transaction_read_only=on"), workspace)
    _says_why_and_sends_nothing(deployment, "a setting of the connection")


@pytest.mark.parametrize("lifted", [True, pytest.param(False, marks=pytest.mark.chaos)])
def test_a_server_that_turns_read_only_under_way(tmp_path: Path, *, lifted: bool) -> None:
    """As one whose storage is full; what was sent by then is recorded when it takes writes again."""
    with EmbeddedPostgres(tmp_path / "pg", durable=False) as server:
        url = _with_control_table(server)
        initialise(Settings(postgres_url=url))
        audit.install(url)
        with chaos_deployment(url, tmp_path) as deployment:
            deployment.add(20)
            deployment.add_repair(repairs=1)

            def lift() -> None:
                _reloaded(url, "ALTER SYSTEM RESET default_transaction_read_only")

            def turn() -> None:
                _reloaded(url, "ALTER SYSTEM SET default_transaction_read_only = on")
                if lifted:
                    threading.Timer(3, lift).start()

            rule = deployment.at(Moment("SET state = 'SENDING'", "commit", "after"), turn)
            done = deployment.dispatch(PM_CONCURRENCY="4")
            assert rule.fired.wait(30)
            if lifted:
                assert done.process.exitcode == 0, done.err
            else:
                assert done.process.exitcode == 1
                assert "the database is read-only" in done.err
                assert "does not answer" not in done.err
                lift()
            _all_is_done(deployment)


def _all_is_done(deployment: ChaosDeployment) -> None:
    finish(deployment)
    assert set(deployment.statuses().values()) == {"SCHEDULED"}
    assert_clean(deployment, may_fail=())


def test_init_says_it_too(chaos_database: str) -> None:
    url = make_dsn(chaos_database, options="-c default_transaction_read_only=on")
    with pytest.raises(ProcessManagerError, match="is read-only"):
        initialise_anew(url)


def initialise_anew(url: str) -> None:
    """`pm init` where there is something to do."""
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute("SET default_transaction_read_only = off")
        connection.commit()
        cursor.execute("DROP SCHEMA process_manager CASCADE")
        connection.commit()
    initialise(Settings(postgres_url=url))
