"""PgBouncer between the dispatch and the database: nothing of ours stays behind in a lent connection, nothing twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from pathlib import Path
from typing import NamedTuple

import psycopg2
import pytest
from psycopg2.extensions import make_dsn, parse_dsn

from pm_dagster.sandbox.postgres import EmbeddedPostgres
from pm_dagster_tests.chaos import pooler as places
from pm_dagster_tests.chaos.deployment import ChaosDeployment, Moment, chaos_deployment
from pm_dagster_tests.chaos.finishing import assert_clean, finish, settled
from pm_dagster_tests.chaos.pooler import Pooler, PoolerAbsentWarning, pooler
from pm_dagster_tests.ledger.postgres_control_table import eventually

MODES = ("transaction", "session")
_AFTER_INTENT = Moment("SET state = 'SENDING'", "commit", "after")
_SETTINGS = (
    "default_transaction_read_only",
    "default_transaction_isolation",
    "lock_timeout",
    "statement_timeout",
    "search_path",
)


class Behind(NamedTuple):
    """A deployment whose dispatches reach the database through the pooler."""

    deployment: ChaosDeployment
    pooler: Pooler
    database: str

    def url(self) -> str:
        """The database as another client of the pooler reaches it."""
        return self.pooler.url(self.database)


Opener = Callable[..., AbstractContextManager[Behind]]


@pytest.fixture
def behind(postgres: EmbeddedPostgres, chaos_database: str, tmp_path: Path) -> Opener:
    """Starts PgBouncer with a pool mode and settings, and a deployment behind it."""

    @contextmanager
    def opened(mode: str, **settings: str | int) -> Iterator[Behind]:
        with ExitStack() as stack:
            running = stack.enter_context(pooler(postgres, tmp_path, mode, **settings))
            deployment = stack.enter_context(chaos_deployment(chaos_database, tmp_path, ("127.0.0.1", running.port)))
            deployment.settings["PM_LEASE_SECONDS"] = "2"
            yield Behind(deployment, running, str(parse_dsn(chaos_database)["dbname"]))

    return opened


def ask(url: str, statement: str) -> list[tuple[object, ...]]:
    """One statement of another client."""
    with closing(psycopg2.connect(url)) as connection, connection, connection.cursor() as cursor:
        cursor.execute(statement)
        return cursor.fetchall()


def rows(deployment: ChaosDeployment, count: int = 6) -> None:
    """New rows and repairs."""
    deployment.add(count)
    for repairs in (0, 2):
        deployment.add_repair(repairs=repairs)


@pytest.mark.parametrize("mode", MODES)
def test_two_dispatches_through_a_pooler(behind: Opener, mode: str) -> None:
    """They find by themselves that a session lock is not to be trusted."""
    with behind(mode) as (deployment, _, _):
        rows(deployment, 30)
        both = [deployment.start(PM_CONCURRENCY="2") for _ in range(2)]
        assert [process.wait() for process in both] == [0, 0]
        finish(deployment)
        assert_clean(deployment, may_fail=())
        assert set(deployment.sql("SELECT liveness FROM process_manager.dispatcher")) == {("lease",)}


@pytest.mark.parametrize("mode", MODES)
def test_a_killed_dispatch_is_taken_over_when_its_lease_is_over(behind: Opener, mode: str) -> None:
    with behind(mode) as (deployment, _, _):
        rows(deployment)
        doom = deployment.kill_at(_AFTER_INTENT)
        deployment.dispatch()
        assert doom.fired.wait(30)
        alive = "SELECT count(*) FROM process_manager.dispatcher WHERE lease_until > clock_timestamp()"
        assert deployment.sql(alive) == [(1,)], "nobody knows yet that it is dead"
        eventually(lambda: deployment.sql(alive) == [(0,)], "the lease runs out")
        finish(deployment)
        assert_clean(deployment, may_fail=())
        assert deployment.sql("SELECT count(*) FROM process_manager.dispatcher WHERE ended_as = 'dead'") == [(1,)]


@pytest.mark.slow
@pytest.mark.parametrize("query", [{}, {"server_reset_query": "DISCARD ALL", "server_reset_query_always": 1}])
def test_no_command_leaves_anything_behind_in_a_lent_connection(behind: Opener, query: dict[str, str | int]) -> None:
    """Every client after ours gets the very same connection."""
    with behind("transaction", default_pool_size=1, **query) as here:
        deployment = here.deployment
        rows(deployment)
        (run_id,) = deployment.add(job_id=999_999)
        before = [deployment.sql(f"SHOW {name}") for name in _SETTINGS]
        for command in ("init", "doctor", "plan", "status", "dispatch", "explain", "redrive"):
            deployment.dispatch(command, *([str(run_id)] if command in ("explain", "redrive") else []))
            assert [ask(here.url(), f"SHOW {name}") for name in _SETTINGS] == before, command
            assert deployment.sql("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == [(0,)], command
        assert len(here.pooler.servers()) == 1
        assert [process.process.exitcode for process in deployment.started] == [0, 1, 0, 0, 0, 0, 0]


def test_one_connection_for_four_dispatches(behind: Opener) -> None:
    with behind("transaction", default_pool_size=1) as (deployment, _, _):
        rows(deployment, 20)
        many = [deployment.start(PM_CONCURRENCY="2") for _ in range(4)]
        assert [process.wait() for process in many] == [0] * 4
        finish(deployment)
        assert_clean(deployment, may_fail=())


def test_a_pool_that_somebody_keeps_is_told_and_loses_nothing(behind: Opener) -> None:
    with behind("transaction", default_pool_size=1, query_wait_timeout=1) as here:
        deployment = here.deployment
        rows(deployment)
        with closing(psycopg2.connect(here.url())) as keeper, keeper.cursor() as cursor:
            cursor.execute("SELECT 1")
            refused = deployment.dispatch()
        assert refused.process.exitcode == 1
        assert "the database does not answer" in refused.err
        assert deployment.states() == []
        finish(deployment)
        assert_clean(deployment, may_fail=())


def test_too_many_clients_of_the_pooler_are_told(behind: Opener) -> None:
    with behind("transaction", max_client_conn=1) as here:
        deployment = here.deployment
        rows(deployment)
        with closing(psycopg2.connect(here.url())):
            refused = deployment.dispatch()
        assert refused.process.exitcode == 1
        assert "no more connections allowed" in refused.err
        finish(deployment)
        assert_clean(deployment, may_fail=())


def test_a_startup_option_that_the_pooler_does_not_take_is_named(behind: Opener) -> None:
    with behind("transaction") as (deployment, _, _):
        url = make_dsn(deployment.environment()["PM_POSTGRES_URL"], options="-c search_path=public")
        refused = deployment.dispatch(PM_POSTGRES_URL=url)
        assert refused.process.exitcode == 1
        assert "unsupported startup parameter: options" in refused.err
    with behind("transaction", ignore_startup_parameters="options") as (deployment, _, _):
        rows(deployment)
        url = make_dsn(deployment.environment()["PM_POSTGRES_URL"], options="-c search_path=public")
        assert deployment.dispatch(PM_POSTGRES_URL=url).process.exitcode == 0
        assert settled(deployment)


def test_the_poolers_restart_under_way(behind: Opener) -> None:
    """Its connections break; the dispatch goes on through the next one, or a later dispatch finishes."""
    with behind("transaction") as here:
        deployment = here.deployment
        rows(deployment, 40)
        cut = deployment.at(_AFTER_INTENT, deployment.front.cut_all)
        deployment.dispatch()
        assert cut.fired.wait(30)
        finish(deployment)
        assert_clean(deployment, may_fail=())


@pytest.mark.parametrize("must_be_there", [True, False])
def test_where_it_is_missing_the_gate_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, must_be_there: bool
) -> None:
    monkeypatch.setattr(places, "_PLACES", ())
    monkeypatch.setattr(places, "_MUST_BE_THERE", must_be_there)
    monkeypatch.setenv("PATH", str(tmp_path))
    if must_be_there:
        with pytest.raises(pytest.fail.Exception, match="PM_ALLOW_SKIPS"):
            places.program()
    else:
        with pytest.warns(PoolerAbsentWarning), pytest.raises(pytest.skip.Exception):
            places.program()
