"""How long it takes until work goes on: after the death of a dispatch, and after the database was away.

The figures go into the report; nothing here depends on how fast the machine is.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Literal

import psycopg2
import pytest

from pm_dagster.config.settings import Settings
from pm_dagster.ledger.migrate import initialise
from pm_dagster.sandbox.postgres import EmbeddedPostgres
from pm_dagster_tests.chaos import audit
from pm_dagster_tests.chaos.boundaries import Boundary, moment
from pm_dagster_tests.chaos.deployment import ChaosDeployment, chaos_deployment
from pm_dagster_tests.chaos.records import record

pytestmark = pytest.mark.chaos
_ROWS = 200
#: The first row that a dispatch closed after a moment (seconds of the epoch), as a time of the same kind.
_NEXT = """
SELECT extract(epoch FROM min(at))::float FROM proof.change
WHERE who = 'process_manager' AND after = 'SCHEDULED' AND at > to_timestamp(%s)
"""


def test_after_the_death_of_a_dispatch(chaos: ChaosDeployment) -> None:
    """Killed with calls in flight and further rows claimed; another one is started at that moment."""
    chaos.add(_ROWS)
    mark = moment(Boundary.AFTER_INTENT, "run-now")
    assert mark is not None
    chaos.kill_at(mark)
    chaos.dispatch()
    killed = time.time()
    held = len(chaos.states())
    second = chaos.dispatch()
    ended = time.time()
    if set(chaos.statuses().values()) != {"SCHEDULED"}:
        # The server had not yet noticed the death when the second one looked.
        chaos.dispatch()
        ended = time.time()
    assert set(chaos.statuses().values()) == {"SCHEDULED"}, second.err
    verdict = chaos.verdict(may_fail=())
    assert verdict.clean, str(verdict)
    assert 16 < held < _ROWS
    figures = {"seconds until another dispatch had closed all its rows": ended - killed}
    record("recovery", "kill -9 of a dispatch", {**verdict.counts, "rows": _ROWS}, figures)


@contextmanager
def _server(folder: Path) -> Iterator[tuple[EmbeddedPostgres, str]]:
    """A server of this test's own, which may be stopped, with a database for a deployment."""
    with EmbeddedPostgres(folder / "pg", port=0, durable=False) as server:
        url = server.create_database("deployment")
        with closing(psycopg2.connect(url)) as connection, connection, connection.cursor() as cursor:
            cursor.execute(files("pm_dagster.sandbox").joinpath("control_schema.sql").read_text())
        initialise(Settings(postgres_url=url))
        audit.install(url)
        yield server, url


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_after_a_restart_of_the_database(tmp_path: Path, mode: Literal["fast", "immediate"]) -> None:
    """Under way, with half of the rows still to be sent, the server goes down and comes back."""
    output = tmp_path / "output"
    output.mkdir()
    with _server(tmp_path) as (server, url), chaos_deployment(url, output) as deployment:
        deployment.add(_ROWS)
        mark = moment(Boundary.AFTER_CLOSING, "run-now")
        assert mark is not None
        closed = threading.Event()
        deployment.at(mark, closed.set)
        process = deployment.start(PM_RATE_RUN_NOW="40")
        assert closed.wait(120)
        down = time.time()
        server.restart(mode)
        up = time.time()
        assert process.wait() == 0, process.err
        ((again,),) = deployment.sql(_NEXT, (down,))
        assert set(deployment.statuses().values()) == {"SCHEDULED"}
        verdict = deployment.verdict(may_fail=())
    assert verdict.clean, str(verdict)
    figures = {
        "seconds that the server was away": up - down,
        "seconds from its end to the next row closed by the same dispatch": again - down,
    }
    record("recovery", f"{mode} restart of Postgres", {**verdict.counts, "rows": _ROWS}, figures)
