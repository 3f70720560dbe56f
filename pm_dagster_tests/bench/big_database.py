"""A database as it is after years: many finished rows, many closed entries, and a backlog that waits.

    python -m pm_dagster_tests.bench.big_database

makes one and prints how long the product's own statements take in it, in milliseconds of the server's time, under
several plans.
"""

from __future__ import annotations

import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import psycopg2
from psycopg2 import sql
from psycopg2.extensions import connection as Connection  # noqa: N812 the driver's class has a lower-case name

from pm_dagster.config.settings import Settings
from pm_dagster.ledger import reads
from pm_dagster.ledger.control_table_sql import ControlTableStatements
from pm_dagster.ledger.layout import read_layout
from pm_dagster.ledger.migrate import initialise
from pm_dagster.sandbox.postgres import EmbeddedPostgres

_HISTORY = """
INSERT INTO mm_run_plc (run_id, cntrt_id, run_sttus_name, wkf_job_id, wkf_job_run_id, file_name, rgstr_file_time,
                        run_page_url, msg)
SELECT n, n %% 50, CASE WHEN n %% 100 = 0 THEN 'FAILED' ELSE 'SUCCEEDED' END, 1001, 100000000000 + n,
       'orders_' || n || '.csv', timestamp '2024-01-01' + n * interval '30 seconds',
       'https://example.com/jobs/1001/runs/' || n, 'done'
FROM generate_series(1, %(rows)s) n"""
_WAITING = """
INSERT INTO mm_run_plc (run_id, cntrt_id, run_sttus_name, wkf_job_id, file_name, rgstr_file_time)
SELECT %(rows)s + n, 7, 'WAITING', 1001, 'orders_' || n || '.csv', now() AT TIME ZONE 'UTC' - n * interval '1 second'
FROM generate_series(1, %(waiting)s) n"""
_DISPATCHERS = """
INSERT INTO process_manager.dispatcher (actor, liveness, started_at, ended_at, ended_as)
SELECT 'run ' || n, 'lock', now() - interval '1 hour', now(), 'done' FROM generate_series(1, %(dispatchers)s) n"""
#: One in a hundred was refused; half of those were put back and have run since.
_ENTRIES = """
INSERT INTO process_manager.entry (control_table, run_id, generation, branch, state, open, dispatcher_id, job_id,
    parameters, idempotency_token, attempts, outcome, succeeded, accepted_run_id, page_url, reason, row_version,
    created_at, updated_at, closed_at)
SELECT 'public.mm_run_plc', n, g, 'new', CASE WHEN refused THEN 'QUARANTINED' ELSE 'SCHEDULED' END, false,
       1 + n * %(dispatchers)s::bigint / (%(rows)s + 1), 1001,
       jsonb_build_object('RUN_ID', n::text, 'CNTRT_ID', '7', 'FILE_NAME', 'orders_' || n || '.csv'),
       md5(n::text || g), 1, CASE WHEN refused THEN 'quarantined' ELSE 'accepted' END, NOT refused,
       CASE WHEN NOT refused THEN 100000000000 + n END, 'https://example.com/jobs/1001/runs/' || n,
       CASE WHEN refused THEN 'the job does not exist' END, n::text,
       at, at + interval '1 minute', at + interval '1 minute'
FROM generate_series(1, %(rows)s) n CROSS JOIN generate_series(1, 2) g
CROSS JOIN LATERAL (SELECT n %% 100 = 0 AND g = 1 AS refused,
                           timestamptz '2024-01-01' + n * interval '30 seconds' AS at) made
WHERE g = 1 OR n %% 200 = 0
ORDER BY made.at"""
_NO_INDEX = "DROP INDEX mm_run_plc_waiting_ix"
#: As a dispatcher leaves it that lives by a lease; no statistics know of it yet.
_IN_FLIGHT = """
WITH alive AS (
    INSERT INTO process_manager.dispatcher (actor, liveness, lease_until)
    VALUES ('in flight', 'lease', now() + interval '1 day') RETURNING dispatcher_id)
INSERT INTO process_manager.entry (control_table, run_id, generation, branch, state, dispatcher_id)
SELECT 'public.mm_run_plc', w.run_id, 1, 'new', 'CLAIMED', alive.dispatcher_id
FROM alive, (SELECT run_id FROM mm_run_plc WHERE run_sttus_name = 'WAITING' LIMIT 5000) w"""
_NONE_IN_FLIGHT = "DELETE FROM process_manager.entry WHERE open"
#: The owner's view as it may also be: with a look-up beside the control table.
_VIEW_WITH_A_JOIN = """
DROP VIEW mm_run_wait_vw; CREATE VIEW mm_run_wait_vw AS
SELECT r.run_id, r.cntrt_id, r.file_name, r.wkf_job_id, r.wkf_job_run_id
FROM mm_run_plc r LEFT JOIN mm_cntrt_lkp c ON c.cntrt_id = r.cntrt_id WHERE r.run_sttus_name = 'WAITING'"""
_ROWS_WITHOUT_ID = """
DROP VIEW mm_run_wait_vw; CREATE VIEW mm_run_wait_vw AS
SELECT nullif(run_id, -1) AS run_id, cntrt_id, file_name, wkf_job_id, wkf_job_run_id
FROM mm_run_plc WHERE run_sttus_name = 'WAITING'
UNION ALL SELECT NULL, 1, 'lost.csv', 1001, NULL FROM generate_series(1, 100)"""
_NO_STATISTICS = """
DELETE FROM pg_statistic WHERE starelid IN ('mm_run_plc'::regclass, 'process_manager.entry'::regclass)"""
_REPEATS = 7


@dataclass(frozen=True)
class Size:
    """How many rows of each kind."""

    history: int = 1_000_000
    waiting: int = 10_000
    dispatchers: int = 1_000


def make(url: str, size: Size) -> Settings:
    """Put a control table, a ledger and all rows into an empty database."""
    schema = files("pm_dagster.sandbox").joinpath("control_schema.sql").read_text()
    with closing(psycopg2.connect(url)) as connection, connection, connection.cursor() as cursor:
        cursor.execute(schema)
    settings = Settings(postgres_url=url)
    initialise(settings)
    fill(url, size)
    return settings


def fill(url: str, size: Size) -> None:
    """Put the rows into a database that has a control table, with the owner's index, and a ledger."""
    names = {"rows": size.history, "waiting": size.waiting, "dispatchers": size.dispatchers}
    with closing(psycopg2.connect(url)) as connection, connection, connection.cursor() as cursor:
        for statement in (_HISTORY, _WAITING, _DISPATCHERS, _ENTRIES):
            cursor.execute(statement, names)
    _run(url, "VACUUM ANALYZE")


def _run(url: str, *statements: str) -> None:
    with closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        for statement in statements:
            cursor.execute(statement)


class Measured:
    """The statements of one connection, and what the server takes for them."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._connection = psycopg2.connect(settings.postgres_url)
        self._statements = ControlTableStatements(settings, read_layout(self._connection, settings))

    def milliseconds(self, name: str, **names: object) -> float:
        """What the server takes to plan and run a statement; the fastest of several times."""
        return min(self._once(name, **names) for _ in range(_REPEATS))

    def blocks(self, name: str, **names: object) -> int:
        """How many blocks a statement reads, in memory or not."""
        first = next(line for line in self.plan(name, **names).splitlines() if "Buffers:" in line)
        return sum(int(number) for number in re.findall(r"(?:hit|read)=(\d+)", first))

    def status(self) -> float:
        """What ``pm status`` asks of the ledger; wall time, as it is three statements."""

        def ask(connection: Connection) -> None:
            reads.ledger_states(connection, self._settings)
            reads.last_dispatchers(connection)
            reads.quarantined(connection, self._settings)

        found = []
        for _ in range(_REPEATS):
            began = time.perf_counter()
            ask(self._connection)
            found.append(1000 * (time.perf_counter() - began))
            self._connection.rollback()
        return min(found)

    def close(self) -> None:
        """Leave."""
        self._connection.close()

    def _once(self, name: str, **names: object) -> float:
        times = re.findall(r"^(?:Planning|Execution) Time: ([\d.]+) ms", self.plan(name, **names), re.MULTILINE)
        return sum(float(part) for part in times)

    def plan(self, name: str, **names: object) -> str:
        """The plan of a statement, with what it read."""
        statement = getattr(self._statements, name)
        shared = {"me": 0, "waiting": self._settings.status_waiting, "control_table": self._settings.control_table}
        with self._connection.cursor() as cursor:
            cursor.execute(sql.SQL("EXPLAIN (ANALYZE, BUFFERS, TIMING OFF) {}").format(statement), {**shared, **names})
            plan = "\n".join(str(line) for (line,) in cursor.fetchall())
        self._connection.rollback()
        return plan


@contextmanager
def measured(settings: Settings) -> Iterator[Measured]:
    """Measure on a connection of its own."""
    made = Measured(settings)
    try:
        yield made
    finally:
        made.close()


#: What is changed before each line of the table, one after the other.
_CASES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("fresh statistics", ()),
    ("5,000 of the rows are taken", (_IN_FLIGHT,)),
    ("view with a join", (_NONE_IN_FLIGHT, "VACUUM process_manager.entry", _VIEW_WITH_A_JOIN)),
    ("100 rows without id in the view", (_ROWS_WITHOUT_ID,)),
    (
        "index on the status alone",
        (_VIEW_WITH_A_JOIN, _NO_INDEX, "CREATE INDEX of_status ON mm_run_plc (run_sttus_name)"),
    ),
    ("no statistics", (_NO_STATISTICS,)),
    ("no index on the status", ("DROP INDEX of_status", "ANALYZE")),
)


def main(*arguments: str) -> None:
    """Make it, measure, print."""
    size = Size(history=int(arguments[0])) if arguments else Size()
    with tempfile.TemporaryDirectory(prefix="pm-big-") as folder, EmbeddedPostgres(Path(folder) / "pg") as server:
        settings = make(server.create_database("big"), size)
        seen = list(range(size.history + 1, size.history + 1001))
        columns: tuple[tuple[str, Callable[[Measured], float]], ...] = (
            ("backlog", lambda m: m.milliseconds("backlog")),
            ("waiting(1000)", lambda m: m.milliseconds("waiting", limit=1000)),
            ("next(100)", lambda m: m.milliseconds("next", limit=100, seen=seen)),
            ("status", lambda m: m.status()),
        )
        sys.stdout.write(f"{'':34}" + "".join(f"{name:>15}" for name, _ in columns) + "\n")
        for name, statements in _CASES:
            _run(settings.postgres_url, *statements)
            with measured(settings) as one:
                figures = "".join(f"{ask(one):15.1f}" for _, ask in columns)
            sys.stdout.write(f"{name:34}{figures}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
