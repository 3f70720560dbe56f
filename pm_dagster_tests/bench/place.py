"""Where the cases of ``make bench`` are measured: a Postgres server, the local workspace as another process, rows.

It also holds the references that several cases share: a loop of single calls, and a thread pool around the bare SDK.
"""

from __future__ import annotations

import itertools
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Any, Self, TypeVar

import psycopg2
import requests
from databricks.sdk import WorkspaceClient
from databricks.sdk.core import Config
from psycopg2 import sql
from psycopg2.extras import execute_values

from pm_dagster.config.settings import Settings
from pm_dagster.databricks.runs import SdkRuns
from pm_dagster.dispatch.ledger_location import Answer
from pm_dagster.dispatch.report import Report
from pm_dagster.dispatch.service import Dispatch
from pm_dagster.ledger import location
from pm_dagster.ledger.connection import connect
from pm_dagster.ledger.control_plane import PostgresControlPlane
from pm_dagster.ledger.migrate import initialise
from pm_dagster.sandbox.postgres import EmbeddedPostgres
from pm_dagster.sandbox.processes import Children, answers, free_port
from pm_dagster_tests.bench import profiling

#: The job of the rows, and that of another client of the same workspace.
JOB, OTHERS_JOB = 1001, 1002
#: The limits of a workspace, in calls a second: https://docs.databricks.com/aws/en/resources/limits
LIMITS: Mapping[str, float] = {"run-now": 20.0, "runs/repair": 5.0, "runs/get": 100.0}
UNPACED: Mapping[str, float] = {"rate_run_now": 0.0, "rate_repair": 0.0, "rate_get_run": 0.0}
AT_THE_LIMITS: Mapping[str, float] = {"rate_run_now": 20.0, "rate_repair": 5.0, "rate_get_run": 100.0}
_TEMPLATE = "bench_template"
_Held = TypeVar("_Held")
TOKEN = "bench-token"
_PARAMETERS = {"RUN_ID": "1", "CNTRT_ID": "7", "FILE_NAME": "file.csv"}
_FIRST_RUN = 500_000
_LONGEST_SECONDS = 300.0
#: Of somebody else's deployment; and what would make processes compile each time what they import.
_FOREIGN = ("PM_", "DATABRICKS_", "ARM_", "PG", "DAGSTER_", "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX")
_INSERT = """
INSERT INTO mm_run_plc (cntrt_id, run_sttus_name, wkf_job_id, wkf_job_run_id, file_name, rgstr_file_time) VALUES %s
"""
_VALUES = "(7, 'WAITING', %s, %s, 'file.csv', now() - interval '1 hour' + %s * interval '1 millisecond')"
_STATISTICS = "SELECT xact_commit + xact_rollback, active_time FROM pg_stat_database WHERE datname = %s"
_SESSIONS = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s"
_DAGSTER_YAML = "telemetry:\n  enabled: false\n"


@dataclass(frozen=True)
class Ran:
    """A process that ended well: wall-clock seconds, CPU seconds with its own children, standard output."""

    seconds: float
    cpu_seconds: float
    out: str


@dataclass(frozen=True)
class Request:
    """One call that the workspace saw: when it arrived (seconds since the epoch) and how long its answer took."""

    endpoint: str
    began: float
    seconds: float
    status: int
    body: str


def span(calls: Sequence[Request]) -> float:
    """Seconds from the first call's arrival to the last one's answer."""
    return max(call.began + call.seconds for call in calls) - min(call.began for call in calls)


def throttled(calls: Sequence[Request]) -> int:
    """How many calls were answered 429."""
    return sum(call.status == requests.codes.too_many_requests for call in calls)


def seconds_of(work: Callable[[], object]) -> float:
    """The wall-clock seconds of the work."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


@dataclass
class Deployment:
    """A control table with rows and a ledger, and the workspace as the rows need it.

    Attributes:
        url: Of the database.
        host: Of the workspace.
        work: The rows as (job, run to repair or None), in their order.
        variables: The environment of a process that works here.
        profiles: Where profiles of the dispatches are left, if they are profiled.
    """

    url: str
    host: str
    work: list[tuple[int, int | None]]
    variables: dict[str, str] = field(repr=False)
    profiles: Path | None = None

    def settings(self, **changes: Any) -> Settings:  # noqa: ANN401 the fields of Settings
        """Settings for this database that take all its rows."""
        return Settings(postgres_url=self.url, **{"dispatch_limit": max(1, len(self.work)), **changes})

    def client(self, connections: int) -> WorkspaceClient:
        """A client of the SDK that can hold so many connections."""
        config: Any = Config(host=self.host, token=TOKEN, auth_type="pat", max_connections_per_pool=connections)
        return WorkspaceClient(config=config)

    def dispatch(self, settings: Settings) -> Report:
        """One dispatch in this process; every row has to come out of it SCHEDULED."""
        control = PostgresControlPlane(settings, "bench")
        runs = SdkRuns(self.client(settings.concurrency).config, settings)
        work = Dispatch(control, runs, settings).run
        try:
            report = profiling.profiled(work, self.profiles) if self.profiles else work()
        finally:
            control.end()
        self.demand_all_scheduled()
        return report

    def demand_all_scheduled(self) -> None:
        """Raise RuntimeError unless every row is SCHEDULED: work that was not done has no duration."""
        found = self.sql("SELECT run_sttus_name, count(*) FROM mm_run_plc GROUP BY 1")
        if found != [("SCHEDULED", len(self.work))]:
            raise RuntimeError(f"{len(self.work)} rows were to be SCHEDULED; the control table has {found}")

    def insert(self) -> int:
        """A row that waits for a new run; gives its id."""
        with closing(psycopg2.connect(self.url)) as connection, connection, connection.cursor() as cursor:
            execute_values(cursor, _INSERT + " RETURNING run_id", [(JOB, None, 0)], template=_VALUES)
            ((run_id,),) = cursor.fetchall()
        self.work.append((JOB, None))
        return int(run_id)

    def wait_until_scheduled(self, worker: subprocess.Popen[str] | None = None) -> None:
        """Wait until no row is WAITING. Raises RuntimeError when that takes too long, or the worker has ended."""
        end = time.monotonic() + _LONGEST_SECONDS
        while self.sql("SELECT FROM mm_run_plc WHERE run_sttus_name = 'WAITING' LIMIT 1"):
            if time.monotonic() > end or (worker is not None and worker.poll() is not None):
                raise RuntimeError("rows still wait")
            time.sleep(0.2)
        self.demand_all_scheduled()

    def sql(self, query: str) -> list[tuple[Any, ...]]:
        """What a query gives."""
        with closing(psycopg2.connect(self.url)) as connection, connection, connection.cursor() as cursor:
            cursor.execute(query)
            return cursor.fetchall()

    def calls(self, job: int = JOB) -> list[Request]:
        """The calls to the Jobs API so far, those about another client's job apart."""
        answer = requests.get(f"{self.host}/sandbox/log", headers=_headers(), timeout=30)
        answer.raise_for_status()
        others = f'"job_id": {OTHERS_JOB},'
        return [
            Request(each["endpoint"], each["time"], each["seconds"], each["status"], each["body"])
            for each in answer.json()["requests"]
            if each["endpoint"].startswith("run") and (others in each["body"]) == (job == OTHERS_JOB)
        ]

    def run(self, *command: str, **variables: str) -> Ran:
        """Run Python with this command line to its end. Raises RuntimeError when it fails."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        began = time.perf_counter()
        done = subprocess.run(
            self._python(command, variables),
            env={**self.variables, **variables},
            capture_output=True,
            text=True,
            timeout=_LONGEST_SECONDS,
            check=False,
        )
        took = time.perf_counter() - began
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode != 0:
            raise RuntimeError(f"{command} failed: {done.stderr[-2000:]}")
        return Ran(took, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout)

    def run_followed(self, *command: str, **variables: str) -> tuple[str, float]:
        """Run Python to its end; gives its standard output and the most memory that it held, in MiB (0 off Linux).

        Raises:
            RuntimeError: It fails.
        """
        environment = {**self.variables, **variables}
        with TemporaryFile("w+") as out, TemporaryFile("w+") as errors:
            process = subprocess.Popen(self._python(command, variables), env=environment, stdout=out, stderr=errors)
            peak = 0.0
            while process.poll() is None:
                peak = max(peak, _peak_mib(process.pid))
                time.sleep(0.02)
            out.seek(0)
            errors.seek(0)
            if process.returncode != 0:
                raise RuntimeError(f"{command} failed: {errors.read()[-2000:]}")
            return out.read(), peak

    def start(self, *command: str, **variables: str) -> subprocess.Popen[str]:
        """Start Python with this command line; the caller reads its output and waits."""
        environment = {**self.variables, **variables}
        return subprocess.Popen(self._python(command, variables), env=environment, stdout=subprocess.PIPE, text=True)

    def _python(self, command: Sequence[str], variables: Mapping[str, str]) -> list[str]:
        """The command line; profiled where that is wanted, but not where most of the time goes into compiling."""
        if self.profiles and "PYTHONPYCACHEPREFIX" not in variables:
            command = profiling.command(self.profiles, command)
        return [sys.executable, *command]

    # ---- references

    def sequential(self, rows: int) -> float:
        """Seconds a row of a plain loop over the first rows: one call after the other, a fresh connection for each."""
        some = self.work[:rows]

        def work() -> None:
            for job, run in some:
                self._plain(job, run)

        return seconds_of(work) / len(some)

    def pool(self, workers: int) -> float:
        """Seconds that a thread pool around the bare SDK takes for the same calls: no ledger, no guarantees."""
        api = self.client(workers).jobs

        def one(row: tuple[int, int | None]) -> None:
            job, run = row
            if run is None:
                api.run_now(job, job_parameters=_PARAMETERS)
                return
            repairs = api.get_run(run, include_history=True).repair_history or []
            latest = [each.id for each in repairs if each.id][-1:]
            api.repair_run(
                run,
                rerun_all_failed_tasks=True,
                job_parameters=_PARAMETERS,
                latest_repair_id=latest[0] if latest else None,
            )

        def work() -> None:
            with ThreadPoolExecutor(workers) as threads:
                list(threads.map(one, self.work))

        return seconds_of(work)

    def _plain(self, job: int, run: int | None) -> None:
        api = f"{self.host}/api/2.2/jobs"
        if run is None:
            _post(f"{api}/run-now", {"job_id": job, "job_parameters": _PARAMETERS})
            return
        requests.get(
            f"{api}/runs/get", {"run_id": str(run), "include_history": "true"}, headers=_headers(), timeout=30
        ).raise_for_status()
        _post(f"{api}/runs/repair", {"run_id": run, "rerun_all_failed_tasks": True, "job_parameters": _PARAMETERS})


class Place:
    """A Postgres server and a workspace, in which each case gets deployments of its own; ``with`` starts and ends them.

    Args:
        quick: Small forms: they show that a case works, not how fast it is.
    """

    def __init__(self, *, quick: bool) -> None:
        self.quick = quick
        self._names = (f"bench_{number}" for number in itertools.count())
        self._done: set[str] = set()
        self._kept: dict[str, Settings] = {}
        self._held: dict[str, Any] = {}
        self._profiles: Path | None = None
        self._stack, self._holding = ExitStack(), ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._folder = Path(stack.enter_context(TemporaryDirectory(prefix="pm-bench-")))
            self._server = stack.enter_context(EmbeddedPostgres(self._folder / "pg"))
            environment = {**_own_environment(), "PM_SANDBOX_TOKEN": TOKEN}
            children = stack.enter_context(Children(environment, self._folder))
            port = free_port(0)
            children.start("workspace", [sys.executable, "-m", "pm_dagster.sandbox.workspace", "--port", str(port)])
            self.host = f"http://127.0.0.1:{port}"
            end = time.monotonic() + _LONGEST_SECONDS
            while not answers(port):
                if children.ended() or time.monotonic() > end:
                    raise RuntimeError(children.log_of("workspace").read_text())
                time.sleep(0.05)
            home = self._folder / "dagster"
            home.mkdir()
            (home / "dagster.yaml").write_text(_DAGSTER_YAML)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
        self._stack.close()

    def held(self, name: str, start: Callable[[], AbstractContextManager[_Held]]) -> _Held:
        """What ``start`` gives, started once and kept until ``release``."""
        if name not in self._held:
            self._held[name] = self._holding.enter_context(start())
        found: _Held = self._held[name]
        return found

    def release(self) -> None:
        """End all that is held."""
        self._held.clear()
        self._holding.close()

    def profile(self, work: Callable[[], object]) -> str:
        """Do the work; gives where the time of its dispatches went, for people."""
        log = self._folder / "pg" / "server.log"
        began = log.stat().st_size
        with TemporaryDirectory(prefix="profiles-", dir=self._folder) as profiles:
            self._profiles = Path(profiles)
            try:
                work()
            finally:
                self._profiles = None
            with log.open("rb") as file:
                file.seek(began)
                return profiling.report(Path(profiles), file.read().decode(errors="replace"))

    def once(self, name: str, work: Callable[[], object]) -> None:
        """Do what is not measured and what later trials need no more; nothing in the quick form."""
        if not self.quick and name not in self._done:
            self._done.add(name)
            work()

    def size(self, whole: int, quick: int) -> int:
        """The one for a measurement, or the one for the quick form."""
        return quick if self.quick else whole

    @contextmanager
    def deployment(
        self,
        new: int,
        repair: int = 0,
        *,
        latency: float = 0.0,
        jitter: float = 0.0,
        limits: Mapping[str, float] | None = None,
    ) -> Iterator[Deployment]:
        """A database with so many rows, repairs spread evenly among them, and the workspace with the runs to repair.

        Args:
            new: Rows that need a new run.
            repair: Rows that need a repair.
            latency: Seconds that each answer takes at least.
            jitter: What an answer takes more or less, by chance.
            limits: Calls a second that the workspace takes, by endpoint; above it answers 429.
        """
        work = [(JOB, run) for run in _spread(new, repair)]
        self._fill_workspace([run for _, run in work if run is not None])
        if latency:
            fault = {"endpoint": "run*", "kind": "hang", "seconds": latency, "jitter": jitter, "count": None}
            self._steer("faults", fault)
        if limits:
            self._steer("limits", {"rates": dict(limits)})
        name = next(self._names)
        url = self._server.create_database(name, template=self._template())
        try:
            self._fill_database(url, work)
            if self._profiles:
                self._execute(
                    sql.SQL("ALTER DATABASE {} SET log_min_duration_statement = 0").format(sql.Identifier(name))
                )
            yield Deployment(url, self.host, work, self._variables(url, len(work)), self._profiles)
        finally:
            self._server.drop_database(name)

    def post(self, path: str, values: Mapping[str, object]) -> int:
        """A call to the Jobs API by another client; gives the status of its answer."""
        url = f"{self.host}/api/2.2/jobs/{path}"
        return requests.post(url, json=values, headers=_headers(), timeout=30).status_code

    def statistics(self, deployment: Deployment) -> tuple[int, float]:
        """Transactions so far, and milliseconds that the server worked; counted when the sessions have ended."""
        name = deployment.url.partition("@/")[2].partition("?")[0]
        end = time.monotonic() + _LONGEST_SECONDS
        with closing(psycopg2.connect(self._server.url)) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(_SESSIONS, (name,))
                while cursor.fetchone() != (0,):
                    if time.monotonic() > end:
                        raise RuntimeError(f"sessions of {name} do not end")
                    time.sleep(0.02)
                    cursor.execute(_SESSIONS, (name,))
                cursor.execute(_STATISTICS, (name,))
                transactions, active = cursor.fetchone() or (0, 0.0)
                return int(transactions), float(active)

    def database(self) -> str:
        """An empty database of its own, until the end; gives its URL."""
        return self._server.create_database(next(self._names))

    def kept(self, name: str, fill: Callable[[str], Settings]) -> Settings:
        """A database that is filled once and stays for later trials; gives what ``fill`` gives for its URL."""
        if name not in self._kept:
            self._kept[name] = fill(self.database())
        return self._kept[name]

    @contextmanager
    def statements_logged(self) -> Iterator[Callable[[], int]]:
        """The server logs each statement that arrives in the block; gives a function that counts them.

        The driver sends one message for each.
        """
        log = self._folder / "pg" / "server.log"
        self._set_log("all")
        began = log.stat().st_size

        def count() -> int:
            with log.open("rb") as file:
                file.seek(began)
                return file.read().count(b"LOG:  statement: ")

        try:
            yield count
        finally:
            self._set_log("none")

    def _set_log(self, value: str) -> None:
        self._execute(sql.SQL("ALTER SYSTEM SET log_statement = {}").format(sql.Literal(value)))
        self._execute(sql.SQL("SELECT pg_reload_conf()"))

    def _execute(self, statement: sql.Composable) -> None:
        with closing(psycopg2.connect(self._server.url)) as connection, connection.cursor() as cursor:
            connection.autocommit = True
            cursor.execute(statement)

    def _fill_workspace(self, runs: Sequence[int]) -> None:
        self._steer("reset", {})
        for job in (JOB, OTHERS_JOB):
            values = {"job_id": job, "name": f"bench {job}", "seconds": 2, "max_concurrent_runs": 1000}
            self._steer("jobs", values)
        with requests.Session() as session:
            for run in runs:
                session.post(
                    f"{self.host}/sandbox/runs", json={"job_id": JOB, "run_id": run}, headers=_headers(), timeout=30
                ).raise_for_status()
        self._steer("log/clear", {})

    def _template(self) -> str:
        """The name of a database with the control schema and a ledger, to be copied: a migration takes longer."""
        if _TEMPLATE not in self._done:
            url = self._server.create_database(_TEMPLATE)
            schema = files("pm_dagster.sandbox").joinpath("control_schema.sql").read_text()
            with closing(psycopg2.connect(url)) as connection, connection, connection.cursor() as cursor:
                cursor.execute(schema)
            initialise(Settings(postgres_url=url))
            self._done.add(_TEMPLATE)
        return _TEMPLATE

    def _fill_database(self, url: str, work: Sequence[tuple[int, int | None]]) -> None:
        with closing(connect(Settings(postgres_url=url))) as connection:
            location.answer(connection, Answer.COPY)
            with connection.cursor() as cursor:
                rows = [(job, run, number) for number, (job, run) in enumerate(work)]
                if rows:
                    execute_values(cursor, _INSERT, rows, template=_VALUES, page_size=1000)
                # As a table that is older than a minute has been.
                cursor.execute("ANALYZE")
            connection.commit()

    def _variables(self, url: str, rows: int) -> dict[str, str]:
        return {
            **_own_environment(),
            "PM_POSTGRES_URL": url,
            "PM_DISPATCH_LIMIT": str(max(1000, rows)),
            "DATABRICKS_HOST": self.host,
            "DATABRICKS_TOKEN": TOKEN,
            "DAGSTER_HOME": str(self._folder / "dagster"),
        }

    def _steer(self, what: str, values: Mapping[str, object]) -> None:
        _post(f"{self.host}/sandbox/{what}", values)


def variables_of(rates: Mapping[str, float]) -> dict[str, str]:
    """The rates as the variables of a process."""
    return {f"PM_{name.upper()}": str(rate) for name, rate in rates.items()}


def report_of(process: subprocess.Popen[str]) -> dict[str, Any]:
    """What ``pm dispatch --json`` printed. Raises RuntimeError when it failed."""
    out, _ = process.communicate(timeout=_LONGEST_SECONDS)
    if process.returncode != 0:
        raise RuntimeError(f"pm dispatch ended with {process.returncode}")
    found: dict[str, Any] = json.loads(out)
    return found


def _peak_mib(process: int) -> float:
    """The most memory that a process has held so far; 0 where the system does not tell."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0.0)


def _own_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}


def _spread(new: int, repair: int) -> Iterator[int | None]:
    """The runs to repair in even distances among the rows without one."""
    total, given = new + repair, 0
    for number in range(1, total + 1):
        if number * repair // total > given:
            given += 1
            yield _FIRST_RUN + given
        else:
            yield None


def _headers() -> dict[str, str]:
    return {"Authorization": f"Bearer {TOKEN}"}


def _post(url: str, values: Mapping[str, object]) -> None:
    requests.post(url, json=values, headers=_headers(), timeout=30).raise_for_status()
