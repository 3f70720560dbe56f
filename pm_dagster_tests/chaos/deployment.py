"""One deployment to break: a database, a workspace, the front between the dispatch and the database, the dispatches.

Put here: what a test does in it: add rows, start dispatches, let time pass, judge. Keep out: which faults and where.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg2
from psycopg2.extensions import parse_dsn

from pm_dagster.sandbox.workspace import LocalWorkspace
from pm_dagster.sandbox.workspace.attempts import RepairRequest
from pm_dagster_tests.chaos import dispatcher
from pm_dagster_tests.chaos.dispatcher import Dispatcher
from pm_dagster_tests.chaos.oracle import Oracle, Verdict
from pm_dagster_tests.chaos.wire import At, Rule, Then, When, WireFront
from pm_dagster_tests.chaos.wire_messages import Target
from pm_dagster_tests.database import fetched
from pm_dagster_tests.ledger.postgres_control_table import eventually

JOB = 1001
#: Short pauses and no pacing: a test waits for nothing but the fault itself.
SETTINGS: Mapping[str, str] = {
    "PM_CALL_BACKOFF_SECONDS": "0.02",
    "PM_SETTLE_SECONDS": "30",
    "PM_RATE_RUN_NOW": "0",
    "PM_RATE_REPAIR": "0",
    "PM_RATE_GET_RUN": "0",
    "PM_HTTP_TIMEOUT_SECONDS": "20",
}
_INSERT = """
INSERT INTO mm_run_plc (cntrt_id, run_sttus_name, wkf_job_id, wkf_job_run_id, file_name, rgstr_file_time)
SELECT 7, 'WAITING', %s, %s, 'file.csv', now() AT TIME ZONE 'UTC' FROM generate_series(1, %s) RETURNING run_id
"""
_LATER = "UPDATE process_manager.entry SET not_before = not_before - %s * interval '1 second' WHERE not_before > now()"


@dataclass(frozen=True)
class Moment:
    """A message of the dispatch: a piece of its SQL or of the transaction it commits, and before or after it.

    ``also`` is another piece that the transaction must have.
    """

    text: str
    at: At
    when: When
    also: str = ""


@dataclass
class ChaosDeployment:
    """A database (its URL without the front), a workspace that is started, and a folder for what is written."""

    database_url: str
    workspace: LocalWorkspace
    front: WireFront
    folder: Path
    password: str
    settings: dict[str, str] = field(default_factory=dict)
    started: list[Dispatcher] = field(default_factory=list)
    held: ExitStack = field(default_factory=ExitStack)
    holding: bool = False

    @property
    def oracle(self) -> Oracle:
        """The judge of this deployment."""
        return Oracle(self.database_url, self.workspace, [self.workspace.token, self.password])

    def environment(self, **more: str) -> dict[str, str]:
        """The variables of a dispatch, which connects through the front."""
        url = self.front.url(parse_dsn(self.database_url)["dbname"], password=self.password)
        base = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
        own = {
            "PM_POSTGRES_URL": url,
            "DATABRICKS_HOST": self.workspace.host,
            "DATABRICKS_TOKEN": self.workspace.token,
            "DATABRICKS_CONFIG_FILE": str(self.folder / "no-such-file"),
        }
        return {**base, **own, **SETTINGS, **self.settings, **more}

    def start(self, *arguments: str, **more: str) -> Dispatcher:
        """Start `pm` (by default `pm dispatch`) with further variables."""
        process = dispatcher.start(self.folder, self.environment(**more), *(arguments or ("dispatch",)))
        self.started.append(process)
        return process

    def dispatch(self, *arguments: str, **more: str) -> Dispatcher:
        """The same, to its end."""
        process = self.start(*arguments, **more)
        process.wait()
        return process

    def at(self, moment: Moment, act: Callable[[], object]) -> Rule:
        """Do something when a dispatch first comes to this message, which then goes on."""

        def action() -> Then:
            act()
            return "go on"

        return self.front.add(Rule(moment.text, action, moment.when, moment.at, also=moment.also))

    def kill_at(self, moment: Moment) -> Rule:
        """Let the dispatch that is started next die by SIGKILL at this message, which goes no further."""
        before = len(self.started)

        def action() -> Then:
            eventually(lambda: len(self.started) > before, "the dispatch is started")
            self.started[before].kill()
            return "cut"

        return self.front.add(Rule(moment.text, action, moment.when, moment.at, also=moment.also))

    def forget_the_dead(self) -> None:
        """Wait until the server has noticed the end of every dispatch's connection, which frees its lock."""
        query = """SELECT count(*) FROM pg_stat_activity
                   WHERE application_name = 'process_manager' AND datname = current_database()"""
        eventually(lambda: self.sql(query) == [(0,)], "the server forgets the connections of the dead")

    def sql(self, query: str, values: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        """Run one statement as the owner, past the front, and commit it."""
        with closing(psycopg2.connect(self.database_url)) as connection, connection, connection.cursor() as cursor:
            cursor.execute(query, values or None)
            return fetched(cursor)

    def hold(self, query: str, values: tuple[object, ...] = ()) -> None:
        """Run one statement as the owner, in a transaction that stays open until ``release``."""
        connection = self.held.enter_context(closing(psycopg2.connect(self.database_url)))
        with connection.cursor() as cursor:
            cursor.execute(query, values or None)
        self.holding = True

    def release(self) -> bool:
        """Roll back whatever is held; gives whether anything was."""
        held, self.holding = self.holding, False
        self.held.close()
        return held

    def add(self, count: int = 1, *, job_id: int | None = JOB, run: int | None = None) -> list[int]:
        """Waiting rows, new or with this earlier run; gives their ids."""
        return [row for (row,) in self.sql(_INSERT, (job_id, run, count))]

    def add_repair(self, *, repairs: int = 0, outcome: str = "fail", job_id: int = JOB) -> tuple[int, int]:
        """A waiting row whose earlier run ended so, after so many repairs; gives its id and the run's."""
        run = self.workspace.state.add_run(job_id, outcome=outcome, repairs=repairs).run_id
        return self.add(run=run, job_id=job_id)[0], run

    def resume_earlier_runs(self) -> None:
        """Let every run that a row names be under way again, by somebody else's repair."""
        for (run,) in self.sql("SELECT wkf_job_run_id FROM mm_run_plc WHERE wkf_job_run_id IS NOT NULL"):
            latest = self.workspace.state.run(run).latest_repair_id
            self.workspace.state.repair(RepairRequest(run, latest, rerun_all_failed_tasks=True))

    def later(self, seconds: float = 4000.0) -> None:
        """Let the waits that the ledger recorded run down, as time would."""
        self.sql(_LATER, (seconds,))

    def statuses(self) -> dict[int, str]:
        """What the control table says of each row."""
        return dict(self.sql("SELECT run_id, run_sttus_name FROM mm_run_plc"))

    def states(self) -> list[str]:
        """The states of the ledger's entries, in order of rows."""
        return [state for (state,) in self.sql("SELECT state FROM process_manager.entry ORDER BY run_id, generation")]

    def files(self) -> list[Path]:
        """Everything that the dispatches wrote."""
        return sorted(file for file in self.folder.iterdir() if file.suffix in (".out", ".err"))

    def verdict(self, **allowed: Any) -> Verdict:  # noqa: ANN401 the options of Oracle.verdict
        """Judge this deployment, which has come to rest."""
        return self.oracle.verdict(self.files(), **allowed)


@contextmanager
def chaos_deployment(database_url: str, folder: Path, target: Target | None = None) -> Iterator[ChaosDeployment]:
    """A deployment over a database that has ledger and audit; ``target`` as of WireFront, by default its Unix socket.

    At its end, whatever dispatch still runs is killed.
    """
    # Tokens are made of the environment: a copied database must not share another's.
    with closing(psycopg2.connect(database_url)) as connection, connection, connection.cursor() as cursor:
        cursor.execute("UPDATE process_manager.identity SET environment = gen_random_uuid()")
    parts = parse_dsn(database_url)
    socket = f"{parts['host']}/.s.PGSQL.{parts['port']}"
    password = f"planted-{secrets.token_hex(12)}"
    with LocalWorkspace(token=f"dapi{secrets.token_hex(16)}") as workspace, WireFront(target or socket) as front:
        workspace.state.add_job("load", JOB, seconds=None, max_concurrent_runs=10_000)
        deployment = ChaosDeployment(database_url, workspace, front, folder, password)
        try:
            yield deployment
        finally:
            deployment.release()
            for process in deployment.started:
                process.kill()
                process.process.join()
