"""The server goes away, is full, or falls silent while a dispatch is under way."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from importlib.resources import files
from pathlib import Path
from typing import Literal

import psycopg2
import pytest
from psycopg2 import sql
from psycopg2.extensions import make_dsn, parse_dsn

from pm_dagster.config.settings import Settings
from pm_dagster.dispatch.model import EntryState
from pm_dagster.errors import ControlPlaneUnavailable
from pm_dagster.ledger import session
from pm_dagster.ledger.control_plane import PostgresControlPlane
from pm_dagster.ledger.migrate import initialise
from pm_dagster.sandbox.postgres import EmbeddedPostgres
from pm_dagster_tests.chaos import audit
from pm_dagster_tests.chaos.deployment import ChaosDeployment, Moment, chaos_deployment
from pm_dagster_tests.chaos.finishing import assert_clean, finish, story
from pm_dagster_tests.chaos.records import record
from pm_dagster_tests.chaos.wire import Rule, Then, WireFront
from pm_dagster_tests.contracts.steps import claim_one, send
from pm_dagster_tests.ledger.postgres_control_table import PostgresControlTable

_AFTER_INTENT = Moment("SET state = 'SENDING'", "commit", "after")


@pytest.fixture
def own_deployment(tmp_path: Path) -> Iterator[tuple[ChaosDeployment, EmbeddedPostgres]]:
    """A deployment on a server of its own, which the test may stop."""
    with EmbeddedPostgres(tmp_path / "pg", durable=False) as server:
        url = server.create_database("own")
        schema = files("pm_dagster.sandbox").joinpath("control_schema.sql").read_text()
        with closing(psycopg2.connect(url)) as connection, connection, connection.cursor() as cursor:
            cursor.execute(schema)
        initialise(Settings(postgres_url=url))
        audit.install(url)
        with chaos_deployment(url, tmp_path) as deployment:
            yield deployment, server


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_the_server_restarts_under_way(
    own_deployment: tuple[ChaosDeployment, EmbeddedPostgres], mode: Literal["fast", "immediate"]
) -> None:
    """The same dispatch goes on."""
    deployment, server = own_deployment
    deployment.add(20)
    deployment.add_repair(repairs=1)
    rule = deployment.at(_AFTER_INTENT, lambda: server.restart(mode))
    done = deployment.dispatch(PM_CONCURRENCY="4")
    assert rule.fired.wait(30)
    assert done.process.exitcode == 0, story(deployment)
    assert set(deployment.statuses().values()) == {"SCHEDULED"}
    assert_clean(deployment, may_fail=())


@pytest.mark.chaos
def test_a_server_that_stays_away_ends_the_dispatch_and_a_later_one_finishes(
    own_deployment: tuple[ChaosDeployment, EmbeddedPostgres],
) -> None:
    deployment, server = own_deployment
    deployment.add(20)
    rule = deployment.at(_AFTER_INTENT, server.stop)
    done = deployment.dispatch(PM_CONCURRENCY="4")
    assert rule.fired.wait(30)
    assert done.process.exitcode == 1
    assert "the database does not answer" in done.err
    server.start()
    finish(deployment)
    assert_clean(deployment, may_fail=())


def limited_role(deployment: ChaosDeployment, name: str) -> str:
    """A role that may have one connection; the environment's URL for it, past the front."""
    role = sql.Identifier(name)
    with closing(psycopg2.connect(deployment.database_url)) as connection, connection, connection.cursor() as cursor:
        cursor.execute(sql.SQL("CREATE ROLE {} LOGIN CONNECTION LIMIT 1").format(role))
        for schema in ("public", "process_manager"):
            names = {"schema": sql.Identifier(schema), "role": role}
            cursor.execute(sql.SQL("GRANT ALL ON SCHEMA {schema} TO {role}").format(**names))
            cursor.execute(sql.SQL("GRANT ALL ON ALL TABLES IN SCHEMA {schema} TO {role}").format(**names))
            cursor.execute(sql.SQL("GRANT ALL ON ALL SEQUENCES IN SCHEMA {schema} TO {role}").format(**names))
    return make_dsn(deployment.database_url, user=name)


def test_a_role_that_may_have_no_more_connections(own_deployment: tuple[ChaosDeployment, EmbeddedPostgres]) -> None:
    deployment, _ = own_deployment
    deployment.add(3)
    url = limited_role(deployment, "narrow")
    with closing(psycopg2.connect(url)):
        refused = deployment.dispatch(PM_POSTGRES_URL=url)
    assert refused.process.exitcode == 1
    assert 'too many connections for role "narrow"' in refused.err
    assert refused.err.count("\n") == 1
    assert deployment.dispatch(PM_POSTGRES_URL=url).process.exitcode == 0, "one connection is all that a dispatch needs"
    assert_clean(deployment, may_fail=())


def fill(stack: ExitStack, url: str) -> None:
    """Open connections until the server gives no more."""
    for _ in range(200):
        stack.enter_context(closing(psycopg2.connect(url)))


def test_a_server_without_a_free_connection(own_deployment: tuple[ChaosDeployment, EmbeddedPostgres]) -> None:
    """Every command says so; an op's next try works."""
    deployment, _ = own_deployment
    deployment.add(3)
    url = limited_role(deployment, "other")
    deployment.sql("ALTER ROLE other CONNECTION LIMIT -1")
    with ExitStack() as stack:
        with pytest.raises(psycopg2.OperationalError):
            fill(stack, url)
        control = PostgresControlPlane(Settings(postgres_url=url), "test")
        with pytest.raises(ControlPlaneUnavailable, match="remaining connection slots are reserved"):
            control.waiting(10)
        assert deployment.dispatch(PM_POSTGRES_URL=url).process.exitcode == 1
    assert len(control.waiting(10)) == 3
    control.end()
    assert deployment.dispatch(PM_POSTGRES_URL=url).process.exitcode == 0
    assert_clean(deployment, may_fail=())


def test_a_connection_that_falls_silent_is_given_up(chaos_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The front holds the message and its connection to the server, as a network that is gone: the lock stays held.

    The dispatcher ends its own former session and goes on under its own name; what it wrote is there once.
    """
    monkeypatch.setattr(session, "longest_transaction", lambda _settings: 2.0)
    deployment = PostgresControlTable(chaos_database)
    deployment.add()
    parts, released = parse_dsn(chaos_database), threading.Event()

    def hold() -> Then:
        released.wait(120)
        return "cut"

    with WireFront(f"{parts['host']}/.s.PGSQL.{parts['port']}") as front:
        control = deployment.dispatcher(postgres_url=front.url(str(parts["dbname"])))
        entry = claim_one(control)
        before = front.add(Rule("SET state = 'SENDING'", hold))
        after = front.add(Rule('"kind": "answer"', hold, "after", "commit"))
        send(control, entry)
        released.set()
        assert before.fired.wait(30)
        assert after.fired.wait(30)
        assert control.close([entry.entry_id])[0].state is EntryState.SCHEDULED
    deployment.leave()
    assert deployment.events(entry.run_id) == ["claimed", "intent", "answer", "closed"]
    assert deployment.ask("SELECT count(*) FROM process_manager.dispatcher") == [(1,)]


@pytest.mark.chaos
def test_a_dispatch_does_not_outlive_its_deadline_when_the_server_falls_silent(chaos: ChaosDeployment) -> None:
    """Every connection, new ones too, takes what is sent and answers nothing."""
    chaos.add(5)

    def swallow() -> Then:
        return "swallow"

    chaos.front.add(Rule("SET state = 'SENDING'", swallow, count=10**6))
    chaos.front.add(Rule("lock_timeout", swallow, skip=20, count=10**6))
    began = time.monotonic()
    done = chaos.dispatch(PM_DEADLINE_SECONDS="30")
    record(
        "postgres",
        "a server that answers nothing",
        {"exit code": done.process.exitcode or 0},
        {"seconds": time.monotonic() - began},
    )
    assert done.process.exitcode == 1
    assert "the database does not answer" in done.err
    chaos.front.clear()
    finish(chaos)
    assert_clean(chaos, may_fail=())


def test_both_ends_notice_a_network_that_is_gone(tmp_path: Path) -> None:
    """The client's socket, and the server's side of it, which else would keep the lock for two hours."""
    with EmbeddedPostgres(tmp_path / "pg", port=0, durable=False) as server:
        server.create_database("own")
        url = server.database_tcp_url("own")
        with closing(psycopg2.connect(url)) as connection, connection, connection.cursor() as cursor:
            cursor.execute(files("pm_dagster.sandbox").joinpath("control_schema.sql").read_text())
        initialise(Settings(postgres_url=url))
        deployment = PostgresControlTable(url)
        control = deployment.dispatcher()
        control.waiting(1)
        found = control._session._connection
        assert found is not None
        with found.cursor() as cursor:
            for name, value in (("idle", "10"), ("interval", "5"), ("count", "4")):
                cursor.execute(f"SHOW tcp_keepalives_{name}")
                assert cursor.fetchall() == [(value,)]
            cursor.execute("SHOW tcp_user_timeout")
            assert cursor.fetchall() in ([("30s",)], [("30000",)])
        with socket.socket(fileno=os.dup(found.fileno())) as client:
            assert client.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 30_000
            assert client.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        deployment.leave()
