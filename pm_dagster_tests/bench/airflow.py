"""The case ``airflow``: mapped run-now tasks of Airflow's Databricks provider beside a dispatch of as many rows.

Airflow is installed by uv into a folder of its own, which is removed at the end. It keeps its state in a database of
the bench's Postgres server and runs as its documentation deploys it: API server, scheduler with the LocalExecutor, and
DAG processor. A task starts one run and does not wait for its end, as a row does.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

from pm_dagster.sandbox.processes import Children, answers, free_port
from pm_dagster_tests.bench.frame import Case, Figure
from pm_dagster_tests.bench.place import JOB, TOKEN, UNPACED, Deployment, Place, Request, span, variables_of
from pm_dagster_tests.bench.servers import cpu_seconds

_PACKAGES = ("apache-airflow==3.3.2", "apache-airflow-providers-databricks==7.23.0", "asyncpg", "psycopg2-binary")
_LATENCY, _WORKERS = 0.1, 16
_LONGEST_SECONDS = 300.0
_DAG = f"""
from airflow.sdk import DAG
from airflow.providers.databricks.operators.databricks import DatabricksRunNowOperator

with DAG("bench", schedule=None, max_active_tasks={_WORKERS}):
    DatabricksRunNowOperator.partial(
        task_id="run_now", job_id={JOB}, wait_for_termination=False
    ).expand(job_parameters=[{{{{"RUN_ID": str(number)}}}} for number in range({{rows}})])
"""


@dataclass(frozen=True)
class _Airflow:
    """Airflow's servers, and its command line."""

    children: Children
    command: Path
    variables: Mapping[str, str]

    def run(self, *arguments: str) -> None:
        """Run ``airflow`` to its end. Raises RuntimeError when it fails."""
        done = subprocess.run(
            [self.command, *arguments], env=self.variables, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise RuntimeError(f"airflow {' '.join(arguments)} failed: {done.stderr[-2000:]}")


@contextmanager
def _installed(place: Place, rows: int) -> Iterator[_Airflow]:
    """Airflow with one DAG that starts so many runs, its servers running."""
    uv = shutil.which("uv") or str(Path(sys.prefix).parent / ".uv" / "bin" / "uv")
    with TemporaryDirectory(prefix="pm-airflow-") as folder:
        home, environment = Path(folder) / "home", Path(folder) / "environment"
        for command in (
            ["venv", "--quiet", "--python", sys.executable, str(environment)],
            ["pip", "install", "--quiet", "--python", str(environment), *_PACKAGES],
        ):
            subprocess.run([uv, *command], check=True)
        (home / "dags").mkdir(parents=True)
        (home / "dags" / "bench.py").write_text(_DAG.format(rows=rows))
        port = free_port(0)
        variables = _variables(place, home, environment, port)
        with Children(variables, home / "processes") as children:
            airflow = _Airflow(children, environment / "bin" / "airflow", variables)
            airflow.run("db", "migrate")
            airflow.run("dags", "reserialize")
            airflow.run("dags", "unpause", "bench")
            for name in ("api-server", "scheduler", "dag-processor"):
                children.start(name, [str(airflow.command), name])
            _wait(children, lambda: answers(port))
            # Each imports for some seconds.
            time.sleep(15)
            yield airflow


def _variables(place: Place, home: Path, environment: Path, port: int) -> dict[str, str]:
    workspace = urlsplit(place.host)
    connection = {
        "conn_type": "databricks",
        "schema": workspace.scheme,
        "host": workspace.hostname,
        "port": workspace.port,
        "password": TOKEN,
    }
    return {
        "PATH": f"{environment / 'bin'}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "HOME": str(home),
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
        "AIRFLOW__CORE__PARALLELISM": str(_WORKERS),
        "AIRFLOW__CORE__MAX_ACTIVE_TASKS_PER_DAG": str(_WORKERS),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"http://127.0.0.1:{port}/execution/",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": place.database().replace("postgresql://", "postgresql+psycopg2://"),
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__WORKERS": "1",
        "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_hex(32),
        "AIRFLOW_CONN_DATABRICKS_DEFAULT": json.dumps(connection),
    }


def _wait(children: Children, done: Callable[[], bool]) -> None:
    end = time.monotonic() + _LONGEST_SECONDS
    while not done():
        name = children.ended()
        if name is not None:
            raise RuntimeError(f"Airflow's {name} ended: {children.log_of(name).read_text()[-2000:]}")
        if time.monotonic() > end:
            raise RuntimeError("Airflow does not do what was asked for")
        time.sleep(0.2)


def _run_nows(deployment: Deployment) -> list[Request]:
    return [call for call in deployment.calls() if call.endpoint == "run-now"]


def _compared(place: Place) -> Mapping[str, float]:
    rows = place.size(100, 8)
    airflow = place.held("airflow", lambda: _installed(place, rows))
    with place.deployment(rows, latency=_LATENCY) as deployment:
        rates = variables_of(UNPACED) | {"PM_CONCURRENCY": str(_WORKERS)}
        ran = deployment.run("-m", "pm_dagster.cli", "dispatch", "--json", **rates)
        deployment.demand_all_scheduled()
        ours = _run_nows(deployment)
        airflow.run("dags", "trigger", "bench")
        used = cpu_seconds(airflow.children)
        _wait(airflow.children, lambda: len(_run_nows(deployment)) >= 2 * rows)
        # The answers are recorded.
        time.sleep(2)
        used = cpu_seconds(airflow.children) - used
        theirs = _run_nows(deployment)[rows:]
    return {
        "slower than a dispatch by": span(theirs) / span(ours),
        "span of Airflow": span(theirs),
        "span of a dispatch": span(ours),
        "ms a row": 1000 * span(theirs) / rows,
        "ms a row of a dispatch": 1000 * span(ours) / rows,
        "CPU ms a row": 1000 * used / rows,
        "CPU ms a row of a dispatch": 1000 * ran.cpu_seconds / rows,
    }


CASES: tuple[Case, ...] = (
    Case(
        "airflow",
        "100 runs started by mapped DatabricksRunNowOperator tasks of Airflow 3.3, LocalExecutor with 16 at once,"
        " answers after 100 ms: from the first call to the last; beside `pm dispatch` of as many rows, 16 in flight,"
        " without limits. CPU: of Airflow's servers and tasks; of the whole process of `pm dispatch`",
        "a dispatch takes less",
        (
            Figure("slower than a dispatch by", least=1.0, measured="span of Airflow", reference="span of a dispatch"),
            Figure("ms a row", "ms"),
            Figure("ms a row of a dispatch", "ms"),
            Figure("CPU ms a row", "ms"),
            Figure("CPU ms a row of a dispatch", "ms"),
            Figure("span of Airflow", "s"),
            Figure("span of a dispatch", "s"),
        ),
        _compared,
        group="Beside Airflow",
        shares="airflow",
        named=True,
    ),
)
