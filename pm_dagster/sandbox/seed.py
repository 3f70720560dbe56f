"""What the sandbox is filled with: waiting jobs of every kind, and the names of a deployment in a secret scope."""

from __future__ import annotations

import random
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

from psycopg2.extensions import connection as Connection  # noqa: N812

from pm_dagster.sandbox.workspace import LocalWorkspace
from pm_dagster.sandbox.workspace.state import WorkspaceState

#: FlexFlow's scope; a bundle's variable ``secret_scope`` has it as default.
SCOPE = "tp_dpf2cdl"


def fill_secret_scope(workspace: LocalWorkspace, database_url: str) -> None:
    """Put every secret of a deployment into the workspace's scope, over those of an earlier start.

    Args:
        workspace: one that runs, so that its URL is known.
        database_url: a libpq URL over TCP with user and password, because JDBC speaks nothing else.
    """
    database = urlsplit(database_url)
    values = {
        "databricks-instance": workspace.host,
        "databricks-access-token": workspace.token,
        "databricks-catalog-name": "sandbox",
        "database-postgres-schema": "public",
        "refDBjdbcURL": f"jdbc:postgresql://{database.hostname}:{database.port}{database.path}",
        "refDBhostname": str(database.hostname),
        "refDBname": database.path.lstrip("/"),
        "refDBuser": str(database.username),
        "refDBpwd": str(database.password),
        # Nothing in the sandbox takes these; they are there because the job's environment names them.
        **{key: secrets.token_urlsafe(16) for key in ("mdm-client-secret", "jfrog-token", "skid-token")},
    }
    for key, value in values.items():
        workspace.secrets.put(SCOPE, key, value)


INGEST, REPORT, LIMITED, LONG = 1001, 1002, 1003, 1004
UNKNOWN_JOB = 999_999
_WEIGHTS = (8, 2, 2, 1, 1)
_INSERT = """
INSERT INTO mm_run_plc (cntrt_id, run_sttus_name, wkf_job_id, wkf_job_run_id, file_name,
                        rgstr_file_time, user_cancl_or_timedout)
VALUES (%s, 'WAITING', %s, %s, %s, now() - %s * interval '1 second', false) RETURNING run_id
"""


@dataclass(frozen=True)
class Case:
    """One kind of waiting job: how many rows, their Databricks job, and how their earlier run came about."""

    name: str
    rows: int
    job_id: int | None
    earlier_run: Callable[[WorkspaceState], int | None] = lambda _state: None


@dataclass(frozen=True)
class Seeded:
    """A row that was put into the control table."""

    run_id: int
    case: str
    job_id: int | None
    earlier_run: int | None


def _past(outcome: str, repairs: int = 0) -> Callable[[WorkspaceState], int]:
    return lambda state: state.add_run(INGEST, outcome=outcome, repairs=repairs).run_id


def _active(state: WorkspaceState) -> int:
    return state.start_run(LONG)[0].run_id


def _skipped(state: WorkspaceState) -> int:
    state.start_run(LIMITED)
    return state.start_run(LIMITED, queue=False)[0].run_id


def _gone(state: WorkspaceState) -> int:
    run = state.add_run(INGEST)
    state.delete_run(run.run_id)
    return run.run_id


CASES = (
    Case("new", 9, INGEST),
    Case("new, another job", 2, REPORT),
    Case("failed, never repaired", 4, INGEST, _past("fail")),
    Case("failed, one earlier repair", 3, INGEST, _past("fail", repairs=1)),
    Case("failed, many earlier repairs", 2, INGEST, _past("fail", repairs=6)),
    Case("timed out", 1, INGEST, _past("timeout")),
    Case("cancelled", 1, INGEST, _past("cancel")),
    Case("run still active", 2, LONG, _active),
    Case("run already succeeded", 2, INGEST, _past("succeed")),
    Case("run was skipped, never ran", 1, LIMITED, _skipped),
    Case("run is gone", 1, INGEST, _gone),
    Case("unknown job", 1, UNKNOWN_JOB),
    Case("malformed: no job id", 1, None),
    Case("malformed: job id 0", 1, 0),
)


def define_jobs(state: WorkspaceState) -> None:
    """Define the jobs that the rows name; runs take long enough to be seen in the workspace's page."""
    known = {job.job_id for job in state.jobs()}
    for job_id, name, seconds, at_once in (
        (INGEST, "ingest_files", 8.0, 50),
        (REPORT, "build_report", 20.0, 5),
        (LIMITED, "one_at_a_time", 60.0, 1),
        (LONG, "long_running", None, 50),
    ):
        if job_id not in known:
            state.add_job(name, job_id=job_id, seconds=seconds, max_concurrent_runs=at_once)


def seed(connection: Connection, state: WorkspaceState) -> list[Seeded]:
    """Put a row of each case, as often as it says, into the control table; their runs into the workspace."""
    define_jobs(state)
    rows = [case for case in CASES for _ in range(case.rows)]
    seeded = []
    with connection:
        for place, case in enumerate(rows):
            earlier = case.earlier_run(state)
            seeded.append(_insert(connection, case, earlier, age=60.0 * (len(rows) - place)))
    return seeded


def trickle(connection: Connection, state: WorkspaceState, chance: random.Random) -> Iterator[Seeded]:
    """New waiting jobs, one at a time, mostly new ones, as a producer would add them."""
    while True:
        case = chance.choices(CASES[:5], _WEIGHTS)[0]
        with connection:
            seeded = _insert(connection, case, case.earlier_run(state), age=0.0)
        yield seeded


def _insert(connection: Connection, case: Case, earlier: int | None, age: float) -> Seeded:
    contract = 40 + len(case.name) % 7
    name = f"{case.name.split(',')[0].replace(' ', '_').replace(':', '')}_{earlier or 'first'}.csv"
    with connection.cursor() as cursor:
        cursor.execute(_INSERT, (contract, case.job_id, earlier, name, age))
        (run_id,) = cursor.fetchone() or (0,)
    return Seeded(run_id, case.name, case.job_id, earlier)
