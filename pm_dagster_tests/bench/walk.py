"""The walk of one row: how much of the program one row passes through, on five paths. ``--json`` prints an object.

Each path is a process of its own that loads the program, then does the pass under a profiler (``sys.setprofile`` and
``threading.setprofile``). The local workspace is another process, so it is not counted. What the figures mean:

* files, functions: those of ``pm_dagster`` whose code was called, without ``pm_dagster.sandbox``. What runs because a
  module is being imported is not counted, and comprehensions belong to their function.
* dispatch files: those of the files that lie in ``pm_dagster/dispatch`` (formerly ``pm_dagster/core``).
* moves: calls, and returns into a generator, where the nearest caller of ours in the same thread is in another file.
  Code of libraries between the two is looked through.
* transactions: what Postgres counted for the database (``pg_stat_database``: committed and rolled back) during the
  passes, without what every connection costs before its first statement. Autovacuum is off.
* threads: those started while a function of ours was on the stack; Dagster's own are not among them.

In doubt: the answer to the repair is lost after the workspace did it, and one pass makes one try, so that another pass
has to find out. The figures of that path are of both passes together, each file and function counted once.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import dagster as dg
import psycopg2
import requests

from pm_dagster.sandbox.postgres import EmbeddedPostgres
from pm_dagster_tests.database import fetched

PATHS = {
    "cli-new": "CLI, new row",
    "cli-repair": "CLI, repair",
    "cli-doubt": "CLI, repair in doubt",
    "dagster-new": "Dagster, new row",
    "dagster-repair": "Dagster, repair",
}
_HEADINGS = ("files", "dispatch_files", "functions", "moves", "transactions", "threads", "passes")
_JOB = 1001
_TOKEN = "walk-token"
_MOST_PASSES = 3
_PATIENCE_SECONDS = 60.0
_DISPATCH = ("core", "dispatch")
_INSERT = """
INSERT INTO mm_run_plc (cntrt_id, run_sttus_name, wkf_job_id, wkf_job_run_id, file_name, rgstr_file_time)
VALUES (7, 'WAITING', %s, %s, 'file.csv', now())
"""
_STATISTICS = "SELECT xact_commit + xact_rollback, sessions FROM pg_stat_database WHERE datname = %s"
_SESSIONS = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s"


@dataclass
class Walk:
    """What one path took."""

    path: str
    files: int = 0
    dispatch_files: int = 0
    functions: int = 0
    moves: int = 0
    transactions: int = 0
    threads: int = 0
    passes: int = 0


@dataclass
class Steps:
    """What a profiler saw in one process; used by all its threads."""

    files: set[str] = field(default_factory=set)
    functions: set[str] = field(default_factory=set)
    moves: int = 0
    threads: int = 0


class Profiler:
    """Counts calls between the files of the program, in this thread and all that start while it is on."""

    def __init__(self) -> None:
        self.steps = Steps()
        self._home = str(files("pm_dagster")) + os.sep
        self._known: dict[str, str] = {}
        self._imports = threading.local()
        self._lock = threading.Lock()
        self._start = threading.Thread.start.__code__

    @contextmanager
    def on(self) -> Iterator[None]:
        """Count meanwhile."""
        threading.setprofile(self._see)
        sys.setprofile(self._see)
        try:
            yield
        finally:
            sys.setprofile(None)
            threading.setprofile(None)

    def _see(self, frame: FrameType, event: str, _argument: object) -> None:
        code = frame.f_code
        if code.co_name == "<module>":
            depth: int = getattr(self._imports, "depth", 0)
            self._imports.depth = max(0, depth + {"call": 1, "return": -1}.get(event, 0))
            return
        if event != "call" or getattr(self._imports, "depth", 0) > 0:
            return
        if code is self._start:
            with self._lock:
                self.steps.threads += self._caller(frame) != ""
            return
        here = self._file(code)
        if here and (not code.co_name.startswith("<") or code.co_name == "<lambda>"):
            self._count(frame, here)

    def _count(self, frame: FrameType, here: str) -> None:
        caller = self._caller(frame)
        name = f"{here}:{frame.f_code.co_firstlineno}:{frame.f_code.co_qualname}"
        with self._lock:
            self.steps.files.add(here)
            self.steps.functions.add(name)
            self.steps.moves += caller not in ("", here)

    def _caller(self, frame: FrameType) -> str:
        """The file of the nearest caller of ours, empty without one."""
        back = frame.f_back
        while back is not None:
            if found := self._file(back.f_code):
                return found
            back = back.f_back
        return ""

    def _file(self, code: CodeType) -> str:
        """The file of the program that the code is from, empty for all others."""
        name = code.co_filename
        if name not in self._known:
            inside = name[len(self._home) :] if name.startswith(self._home) else ""
            self._known[name] = "" if inside.startswith(f"sandbox{os.sep}") else inside
        return self._known[name]


def _command() -> Callable[[], None]:
    main = import_module("pm_dagster.cli").main

    def work() -> None:
        sys.argv = ["pm", "dispatch", "--json"]
        with suppress(SystemExit):
            main()

    return work


def _dagster_run() -> Callable[[], None]:
    definitions: dg.Definitions = import_module("pm_dagster.definitions").defs
    job = definitions.resolve_job_def("process_manager")

    def work() -> None:
        with dg.DagsterInstance.ephemeral() as instance:
            job.execute_in_process(instance=instance)

    return work


def _inside(path: str, to: Path) -> None:
    """In the process of one pass: do it, and leave what was seen in a file."""
    work = _command() if path.startswith("cli-") else _dagster_run()
    profiler = Profiler()
    with profiler.on():
        work()
    seen = profiler.steps
    lists = {"files": sorted(seen.files), "functions": sorted(seen.functions)}
    to.write_text(json.dumps({**lists, "moves": seen.moves, "threads": seen.threads}))


class Bench:
    """A database with a ledger and a workspace with one job, for one path."""

    def __init__(self, server: EmbeddedPostgres, host: str, folder: Path, path: str) -> None:
        self._server, self._host, self._folder, self._path = server, host, folder, path
        self._name = path.replace("-", "_")
        self._url = server.create_database(self._name)
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("PM_", "DATABRICKS_"))},
            "PM_POSTGRES_URL": self._url,
            "DATABRICKS_HOST": host,
            "DATABRICKS_TOKEN": _TOKEN,
            "PM_CALL_BACKOFF_SECONDS": "0.05",
            "PM_SETTLE_SECONDS": "0.05",
        }

    def walk(self) -> Walk:
        """Put one row there, do passes until it has left WAITING, and count."""
        self._sql(files("pm_dagster.sandbox").joinpath("control_schema.sql").read_text())
        self._run("-m", "pm_dagster.cli", "init")
        run = None if self._path.endswith("-new") else self._post("runs", {"job_id": _JOB, "outcome": "fail"})["run_id"]
        self._sql(_INSERT, (_JOB, run))
        if self._path == "cli-doubt":
            # One try, so that the pass leaves the row in doubt to the next.
            self._environment["PM_CALL_TRIES"] = "1"
            self._post("faults", {"endpoint": "runs/repair", "kind": "reset", "when": "after"})
        each = self._price_of_a_connection()
        seen: list[dict[str, Any]] = []
        transactions = 0
        while self._sql("SELECT 1 FROM mm_run_plc WHERE run_sttus_name = 'WAITING'"):
            if len(seen) == _MOST_PASSES:
                raise RuntimeError(f"{PATHS[self._path]}: the row still waits after {_MOST_PASSES} passes")
            before = self._statistics()
            seen.append(self._pass())
            after = self._statistics()
            transactions += after[0] - before[0] - each * (after[1] - before[1])
        return _summed(self._path, seen, transactions)

    def _pass(self) -> dict[str, Any]:
        to = self._folder / f"{self._name}.json"
        self._run("-m", "pm_dagster_tests.bench.walk", "--inside", str(to), "--path", self._path)
        found: dict[str, Any] = json.loads(to.read_text())
        return found

    def _run(self, *arguments: str) -> None:
        done = subprocess.run(
            [sys.executable, *arguments],
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=_PATIENCE_SECONDS,
            check=False,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{arguments} failed: {done.stderr}")

    def _post(self, what: str, values: dict[str, object]) -> dict[str, Any]:
        return _post(self._host, what, values)

    def _sql(self, query: str, values: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        with closing(psycopg2.connect(self._url)) as connection, connection, connection.cursor() as cursor:
            cursor.execute(query, values or None)
            return fetched(cursor)

    def _price_of_a_connection(self) -> int:
        before = self._statistics()[0]
        psycopg2.connect(self._url).close()
        return self._statistics()[0] - before

    def _statistics(self) -> tuple[int, int]:
        """Transactions and sessions so far; Postgres has counted a session's when it has left."""
        end = time.monotonic() + _PATIENCE_SECONDS
        with closing(psycopg2.connect(self._server.url)) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(_SESSIONS, (self._name,))
                while cursor.fetchone() != (0,):
                    if time.monotonic() > end:
                        raise RuntimeError(f"sessions of {self._name} do not end")
                    time.sleep(0.02)
                    cursor.execute(_SESSIONS, (self._name,))
                cursor.execute(_STATISTICS, (self._name,))
                transactions, sessions = cursor.fetchone() or (0, 0)
                return int(transactions), int(sessions)


def _summed(path: str, seen: Sequence[dict[str, Any]], transactions: int) -> Walk:
    entered = {each for one in seen for each in one["files"]}
    return Walk(
        path,
        files=len(entered),
        dispatch_files=sum(Path(each).parts[0] in _DISPATCH for each in entered),
        functions=len({each for one in seen for each in one["functions"]}),
        moves=sum(one["moves"] for one in seen),
        transactions=transactions,
        threads=sum(one["threads"] for one in seen),
        passes=len(seen),
    )


def _post(host: str, what: str, values: dict[str, object]) -> dict[str, Any]:
    headers = {"Authorization": f"Bearer {_TOKEN}"}
    answer = requests.post(f"{host}/sandbox/{what}", json=values, headers=headers, timeout=10)
    answer.raise_for_status()
    given: dict[str, Any] = answer.json()
    return given


@contextmanager
def _workspace() -> Iterator[str]:
    """The local workspace as another process; gives its URL."""
    command = [sys.executable, "-m", "pm_dagster.sandbox.workspace", "--port", "0"]
    environment = {**os.environ, "PM_SANDBOX_TOKEN": _TOKEN}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            host = process.stdout.readline().split()[-1]
            _post(host, "jobs", {"job_id": _JOB, "name": "walk", "seconds": 3600, "max_concurrent_runs": 1000})
            yield host
        finally:
            process.terminate()


def measure(paths: Sequence[str] = tuple(PATHS)) -> list[Walk]:
    """Walk these paths, each with a database of its own."""
    with (
        tempfile.TemporaryDirectory(prefix="pm-walk-") as folder,
        EmbeddedPostgres(Path(folder) / "pg", durable=False) as server,
        _workspace() as host,
    ):
        with closing(psycopg2.connect(server.url)) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute("ALTER SYSTEM SET autovacuum = off")
                cursor.execute("SELECT pg_reload_conf()")
        return [Bench(server, host, Path(folder), path).walk() for path in paths]


def _table(walks: Sequence[Walk]) -> str:
    rows = [["path", *(each.replace("_", " ") for each in _HEADINGS)]]
    rows += [[PATHS[walk.path], *(str(getattr(walk, each)) for each in _HEADINGS)] for walk in walks]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(text.rjust(wide) for text, wide in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="pm_dagster_tests.bench.walk", description="The walk of one row.")
    parser.add_argument("--json", action="store_true", help="print an object instead of the table")
    parser.add_argument("--path", choices=PATHS, action="append", help="only this path; may be repeated")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.inside:
        _inside(given.path[0], given.inside)
        return
    walks = measure(given.path or tuple(PATHS))
    sys.stdout.write(json.dumps([asdict(walk) for walk in walks], indent=2) + "\n" if given.json else _table(walks))


if __name__ == "__main__":
    main()
