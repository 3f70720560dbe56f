"""How fast a dispatch is, as ratios taken in one run: against the bare API calls, and against the allowed rate.

Put here: the measurements and their table. The workspace is a process of its own, so that it shares no interpreter.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from importlib.resources import files
from pathlib import Path

import psycopg2
import requests
from databricks.sdk import WorkspaceClient

from pm_dagster.config.settings import Settings
from pm_dagster.databricks.runs import SdkRuns
from pm_dagster.dispatch.service import Dispatch
from pm_dagster.ledger.control_plane import PostgresControlPlane
from pm_dagster.ledger.migrate import initialise
from pm_dagster.sandbox.postgres import EmbeddedPostgres
from pm_dagster.sandbox.processes import Children, answers, free_port

ROWS = 1000
PACED_ROWS = 180
JOB = 1001
TOKEN = "bench-token"
_INSERT = """
INSERT INTO mm_run_plc (cntrt_id, run_sttus_name, wkf_job_id, file_name, rgstr_file_time)
SELECT 7, 'WAITING', %s, 'file.csv', now() FROM generate_series(1, %s)
"""


def _workspace(children: Children) -> str:
    port = free_port(0)
    command = [sys.executable, "-m", "pm_dagster.sandbox.workspace", "--port", str(port)]
    children.start("workspace", command)
    while not answers(port):
        time.sleep(0.05)
    host = f"http://127.0.0.1:{port}"
    job = {"job_id": JOB, "name": "bench", "seconds": 3600, "max_concurrent_runs": 1000}
    headers = {"Authorization": f"Bearer {TOKEN}"}
    requests.post(f"{host}/sandbox/jobs", json=job, headers=headers, timeout=10).raise_for_status()
    return host


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _bare_calls(runs: SdkRuns, settings: Settings) -> float:
    """The same number of run-now calls with nothing around them: what the API itself costs."""
    parameters = {"RUN_ID": "1", "CNTRT_ID": "7", "FILE_NAME": "file.csv"}

    def work() -> None:
        with ThreadPoolExecutor(settings.concurrency) as pool:
            list(pool.map(lambda number: runs.start(JOB, parameters, f"bare-{number}"), range(ROWS)))

    return _seconds(work)


def _dispatch(runs: SdkRuns, settings: Settings, rows: int) -> float:
    with closing(psycopg2.connect(settings.postgres_url)) as connection, connection, connection.cursor() as cursor:
        cursor.execute(_INSERT, (JOB, rows))
    control = PostgresControlPlane(settings, "bench")
    try:
        took = _seconds(lambda: _whole(Dispatch(control, runs, settings), rows))
    finally:
        control.end()
    return took


def _whole(dispatch: Dispatch, rows: int) -> None:
    report = dispatch.run()
    if report.scheduled != rows:
        raise RuntimeError(f"{report.scheduled} of {rows} rows were scheduled")


def main() -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory(prefix="pm-bench-") as folder:
        environment = {**os.environ, "PM_SANDBOX_TOKEN": TOKEN}
        with EmbeddedPostgres(Path(folder) / "pg") as server, Children(environment, Path(folder)) as children:
            _measure(server, _workspace(children))


def _measure(server: EmbeddedPostgres, host: str) -> None:
    url = server.create_database("bench")
    schema = files("pm_dagster.sandbox").joinpath("control_schema.sql").read_text()
    with closing(psycopg2.connect(url)) as connection, connection, connection.cursor() as cursor:
        cursor.execute(schema)
    unpaced = Settings(postgres_url=url, rate_run_now=0, rate_repair=0, rate_get_run=0)
    initialise(unpaced)
    client = WorkspaceClient(host=host, token=TOKEN, auth_type="pat")
    runs = SdkRuns(client, unpaced)
    bare = _bare_calls(runs, unpaced)
    whole = _dispatch(runs, unpaced, ROWS)
    paced = Settings(postgres_url=url)
    allowed = PACED_ROWS / paced.rate_run_now
    slow = _dispatch(runs, paced, PACED_ROWS)
    sys.stdout.write(
        f"{ROWS} new rows, no pacing: dispatch {whole:.2f} s, the bare run-now calls {bare:.2f} s,"
        f" ratio {whole / bare:.2f}\n"
        f"{PACED_ROWS} new rows at {paced.rate_run_now:g}/s: {slow:.2f} s, the rate allows {allowed:.2f} s,"
        f" {allowed / slow:.0%} of the rate used\n"
    )


if __name__ == "__main__":
    main()
