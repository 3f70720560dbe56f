"""Cases about whole processes: a dispatch through Dagster, and what a start costs."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from pm_dagster.config.settings import Settings
from pm_dagster_tests.bench.frame import Case, Figure
from pm_dagster_tests.bench.place import LIMITS, UNPACED, Deployment, Place, Ran, span, throttled, variables_of
from pm_dagster_tests.bench.servers import Servers, cpu_seconds, memory, servers, without_bytecode

_THROUGH_DAGSTER, _STARTS = "Through Dagster", "What a start costs, and doing nothing"
_LATENCY = 0.1
#: So long a dispatch of the servers looks for further rows after its last one.
_LINGER = "3"
_BETWEEN_ROWS_SECONDS = 0.5
_SETTLED_SECONDS = 15.0
_PM = ("-m", "pm_dagster.cli", "dispatch", "--json")
_DAGSTER = ("-m", "dagster", "job", "execute")
_OURS = (*_DAGSTER, "-m", "pm_dagster.definitions", "-j", "process_manager")
_EMPTY = (*_DAGSTER, "-m", "pm_dagster_tests.bench.empty_job", "-j", "empty")
#: The least that starts a run: nothing is read, nothing is written down.
_BARE = """
import sys
from databricks.sdk import WorkspaceClient
WorkspaceClient().jobs.run_now(int(sys.argv[1]), job_parameters={"RUN_ID": "1"})
"""
#: Loads a module and says how much memory that took at most, in KiB; 0 where the system does not tell.
_LOAD = """
import sys, importlib, pathlib
importlib.import_module(sys.argv[1])
status = pathlib.Path("/proc/self/status")
lines = status.read_text().splitlines() if status.exists() else []
print(next((line.split()[1] for line in lines if line.startswith("VmHWM")), 0))
"""


def _warm_dagster(place: Place) -> None:
    """Not measured: bytecode is written, and Dagster makes its database."""

    def work() -> None:
        with place.deployment(0) as deployment:
            deployment.run(*_EMPTY)
            deployment.run("-c", _LOAD, "pm_dagster.definitions")

    place.once("dagster", work)


def _through_dagster(deployment: Deployment, **variables: str) -> Ran:
    ran = deployment.run(*_OURS, **variables)
    deployment.demand_all_scheduled()
    return ran


def _dagster_limits(place: Place) -> Mapping[str, float]:
    """Both branches under the limits, at the default rates."""
    new, repair = place.size(300, 20), place.size(75, 5)
    with place.deployment(new, repair, latency=_LATENCY, limits=LIMITS) as deployment:
        ran = _through_dagster(deployment)
        calls = deployment.calls()
    rates = Settings()
    limit = max(new / rates.rate_run_now, repair / rates.rate_repair)
    workspace = max(new / LIMITS["run-now"], repair / LIMITS["runs/repair"])
    first = {name: min(call.began for call in calls if call.endpoint == name) for name in ("run-now", "runs/repair")}
    return {
        "calls span": span(calls),
        "limit": limit,
        "workspace's limit": workspace,
        "of the limit": span(calls) / limit,
        "of the workspace's limit": span(calls) / workspace,
        "first repair after first new run": first["runs/repair"] - first["run-now"],
        "429": throttled(calls),
        "process": ran.seconds,
    }


def _dagster_mixed(place: Place) -> Mapping[str, float]:
    """The mixed batch without pacing, beside ``pm dispatch`` of the same and an empty job."""
    new, repair = place.size(1000, 20), place.size(200, 4)
    rates = variables_of(UNPACED)
    _warm_dagster(place)
    with place.deployment(new, repair, latency=_LATENCY) as deployment:
        empty = deployment.run(*_EMPTY)
        ours = _through_dagster(deployment, **rates)
    with place.deployment(new, repair, latency=_LATENCY) as deployment:
        pm = deployment.run(*_PM, **rates)
        deployment.demand_all_scheduled()
    return {
        "through Dagster": ours.seconds,
        "pm dispatch": pm.seconds,
        "empty job": empty.seconds,
        "pm dispatch and an empty job": pm.seconds + empty.seconds,
        "of pm dispatch and an empty job": ours.seconds / (pm.seconds + empty.seconds),
    }


def _dagster_row(place: Place) -> Mapping[str, float]:
    """One row beside an empty job."""
    _warm_dagster(place)
    with place.deployment(1) as deployment:
        empty = deployment.run(*_EMPTY)
        ours = _through_dagster(deployment)
    return {
        "through Dagster": ours.seconds,
        "empty job": empty.seconds,
        "of the empty job": ours.seconds / empty.seconds,
        "CPU through Dagster": ours.cpu_seconds,
        "CPU of the empty job": empty.cpu_seconds,
        "CPU, of the empty job": ours.cpu_seconds / empty.cpu_seconds,
    }


def _cold(place: Place) -> Mapping[str, float]:
    """``pm dispatch`` of one row in a new process, beside a script that starts a run by the SDK."""
    with place.deployment(2) as deployment, TemporaryDirectory(prefix="pm-bench-") as folder:
        place.once("pm", lambda: deployment.run("-m", "pm_dagster.cli", "plan"))
        bare = deployment.run("-c", _BARE, str(deployment.work[0][0]))
        ran = deployment.run(*_PM, PM_DISPATCH_LIMIT="1")
        compiling = deployment.run(*_PM, PM_DISPATCH_LIMIT="1", **without_bytecode(Path(folder)))
        deployment.demand_all_scheduled()
    return {
        "pm dispatch": ran.seconds,
        "CPU": ran.cpu_seconds,
        "bare script": bare.seconds,
        "of the bare script": ran.seconds / bare.seconds,
        "without bytecode": compiling.seconds,
        "CPU without bytecode": compiling.cpu_seconds,
    }


def _import(place: Place) -> Mapping[str, float]:
    """The code location is loaded in a new process, beside dagster alone."""
    _warm_dagster(place)
    with place.deployment(0) as deployment, TemporaryDirectory(prefix="pm-bench-") as folder:
        bare = deployment.run("-c", _LOAD, "dagster")
        ran = deployment.run("-c", _LOAD, "pm_dagster.definitions")
        compiling = deployment.run("-c", _LOAD, "pm_dagster.definitions", **without_bytecode(Path(folder)))
    return {
        "CPU": ran.cpu_seconds,
        "memory": int(ran.out) / 1024,
        "seconds": ran.seconds,
        "CPU of dagster alone": bare.cpu_seconds,
        "CPU, of dagster alone": ran.cpu_seconds / bare.cpu_seconds,
        "CPU without bytecode": compiling.cpu_seconds,
    }


def _servers(place: Place, *, bytecode: bool = True) -> Servers:
    """Dagster's servers, kept for cases that share them; with bytecode a first row has passed through."""

    @contextmanager
    def start() -> Iterator[Servers]:
        with (
            place.deployment(0, latency=_LATENCY) as deployment,
            servers(deployment, web=bytecode, bytecode=bytecode, PM_LINGER_SECONDS=_LINGER) as started,
        ):
            if bytecode and not place.quick:
                deployment.insert()
                started.wait_until_scheduled()
            yield started

    return place.held("servers" if bytecode else "compiling servers", start)


def _idle(place: Place) -> Mapping[str, float]:
    """What Dagster's servers cost while nothing waits."""
    idle = _servers(place)
    idle.wait_until_idle()
    # What their start cost is not measured.
    place.once("settled", lambda: time.sleep(_SETTLED_SECONDS))
    began, before = time.monotonic(), cpu_seconds(idle.children)
    time.sleep(place.size(25, 2))
    used, took = cpu_seconds(idle.children) - before, time.monotonic() - began
    return {"CPU seconds a minute": 60 * used / took, "memory": memory(idle.children)}


def _seconds_to_call(deployment: Deployment, inserted: Mapping[int, float]) -> dict[int, float]:
    """For each row that was inserted: the seconds from its commit to its run-now."""
    sent = {
        int(json.loads(call.body)["job_parameters"]["RUN_ID"]): call.began
        for call in deployment.calls()
        if call.endpoint == "run-now"
    }
    return {run_id: sent[run_id] - at for run_id, at in inserted.items()}


def _insert(deployment: Deployment, rows: int, between: float = 0.0) -> dict[int, float]:
    """Rows that arrive one after the other; when each was committed, by its id."""
    inserted = {}
    for _ in range(rows):
        run_id = deployment.insert()
        inserted[run_id] = time.time()
        time.sleep(between)
    return inserted


def _alone(started: Servers, rows: int, apart: float) -> list[float]:
    """The seconds to the call of rows that come alone, each when Dagster has been idle for a while."""
    inserted: dict[int, float] = {}
    for number in range(rows):
        started.wait_until_idle()
        # The process of the last run has to end, and no row may keep step with the sensor.
        time.sleep(apart + 1.7 * number)
        inserted |= _insert(started.deployment, 1)
        started.wait_until_scheduled()
    return list(_seconds_to_call(started.deployment, inserted).values())


def _latency(place: Place) -> Mapping[str, float]:
    """How long a row waits for its call: alone, and while others keep coming."""
    started = _servers(place)
    alone = _alone(started, place.size(3, 1), place.size(2, 0))
    inserted = _insert(started.deployment, place.size(24, 4), _BETWEEN_ROWS_SECONDS)
    started.wait_until_scheduled()
    stream = list(_seconds_to_call(started.deployment, inserted).values())
    # The first third comes to a deployment that is idle.
    warm = sorted(stream[len(stream) // 3 :])
    return {
        "alone, median": statistics.median(alone),
        "alone, longest": max(alone),
        "others coming, median": statistics.median(warm),
        "others coming, 95 %": warm[math.ceil(0.95 * len(warm)) - 1],
    }


def _follow(place: Place) -> Mapping[str, float]:
    """How long a row waits for its call while ``pm dispatch --follow`` runs."""
    with place.deployment(0, latency=_LATENCY) as deployment:
        process = deployment.start("-m", "pm_dagster.cli", "dispatch", "--follow", "--json")
        try:
            # The start of the process is not measured.
            _insert(deployment, 1)
            deployment.wait_until_scheduled(process)
            inserted = _insert(deployment, place.size(16, 3), _BETWEEN_ROWS_SECONDS)
            deployment.wait_until_scheduled(process)
        finally:
            process.terminate()
            process.communicate(timeout=60)
        if process.returncode != 0:
            raise RuntimeError(f"pm dispatch --follow ended with {process.returncode}")
        took = sorted(_seconds_to_call(deployment, inserted).values())
    return {"median": statistics.median(took), "95 %": took[math.ceil(0.95 * len(took)) - 1]}


def _latency_compiling(place: Place) -> Mapping[str, float]:
    """The same for a row that comes alone, where no process finds bytecode."""
    return {"alone": _alone(_servers(place, bytecode=False), 1, place.size(4, 0))[0]}


CASES: tuple[Case, ...] = (
    Case(
        "dagster-limits",
        "300 new rows and 75 repairs through Dagster under the limits of a workspace at the default PM_RATE_*, answers"
        " after 100 ms: seconds from the first call to the last; beside rows / limit of the workspace and rows /"
        " PM_RATE_*",
        "within 1.1 x of either; both branches are at work at once",
        (
            Figure("of the workspace's limit", most=1.1, measured="calls span", reference="workspace's limit"),
            Figure("of the limit", most=1.1, measured="calls span", reference="limit"),
            Figure("first repair after first new run", "s", most=2.0),
            Figure("429", most=0),
            Figure("calls span", "s"),
            Figure("workspace's limit", "s"),
            Figure("limit", "s"),
            Figure("process", "s"),
        ),
        _dagster_limits,
        group=_THROUGH_DAGSTER,
    ),
    Case(
        "dagster-mixed",
        "1,000 new rows and 200 repairs without limits through Dagster, 16 calls in flight, answers after 100 ms;"
        " beside `pm dispatch` of the same and an empty Dagster job",
        "as long as both together (5 % for the measurement)",
        (
            Figure(
                "of pm dispatch and an empty job",
                most=1.05,
                measured="through Dagster",
                reference="pm dispatch and an empty job",
            ),
            Figure("through Dagster", "s"),
            Figure("pm dispatch and an empty job", "s"),
            Figure("pm dispatch", "s"),
            Figure("empty job", "s"),
        ),
        _dagster_mixed,
        group=_THROUGH_DAGSTER,
    ),
    Case(
        "dagster-row",
        "one row through Dagster in a new process (`dagster job execute`); beside an empty job of two assets",
        "at most 1.4 x the empty job",
        (
            Figure("of the empty job", most=1.4, measured="through Dagster", reference="empty job"),
            Figure("CPU, of the empty job"),
            Figure("through Dagster", "s"),
            Figure("empty job", "s"),
            Figure("CPU through Dagster", "s"),
            Figure("CPU of the empty job", "s"),
        ),
        _dagster_row,
        trials=3,
        group=_THROUGH_DAGSTER,
    ),
    Case(
        "cold",
        "`pm dispatch` of one row in a new process, with bytecode and without; beside a script that starts one run by"
        " the SDK",
        "at most 0.9 s",
        (
            Figure("pm dispatch", "s", most=0.9, reference="bare script"),
            Figure("CPU", "s"),
            Figure("bare script", "s"),
            Figure("of the bare script"),
            Figure("without bytecode", "s"),
            Figure("CPU without bytecode", "s"),
        ),
        _cold,
        trials=3,
        group=_STARTS,
    ),
    Case(
        "import",
        "the code location is loaded in a new process, with bytecode and without; beside `import dagster`",
        "at most 1.5 CPU seconds and 117 MiB",
        (
            Figure("CPU", "s", most=1.5, reference="CPU of dagster alone"),
            Figure("memory", "MiB", most=117),
            Figure("seconds", "s"),
            Figure("CPU of dagster alone", "s"),
            Figure("CPU, of dagster alone"),
            Figure("CPU without bytecode", "s"),
        ),
        _import,
        trials=2,
        group=_STARTS,
    ),
    Case(
        "idle",
        "web server, daemon with the sensor on, and one code server for both, while nothing waits: 25 seconds,"
        " 15 seconds after their first dispatch; memory as PSS, their supervisors included",
        "at most 3 CPU seconds a minute and 450 MB",
        (
            Figure("CPU seconds a minute", "s", most=3.0),
            Figure("memory", "MB", most=450),
        ),
        _idle,
        group=_STARTS,
        shares="servers",
    ),
    Case(
        "latency",
        "from the commit of a row to its run-now, with the same servers: rows that come alone, and rows that come"
        " every half second, with PM_LINGER_SECONDS=3",
        "alone at most 5 s (median) and 10 s (95 %, here the longest); while others come at most 1.5 s (95 %)",
        (
            Figure("alone, median", "s", most=5.0),
            Figure("alone, longest", "s", most=10.0),
            Figure("others coming, 95 %", "s", most=1.5),
            Figure("others coming, median", "s"),
        ),
        _latency,
        group=_THROUGH_DAGSTER,
        shares="servers",
    ),
    Case(
        "follow",
        "from the commit of a row to its run-now while `pm dispatch --follow` runs: rows that come every half second",
        "at most 1.5 s (95 %)",
        (Figure("95 %", "s", most=1.5), Figure("median", "s")),
        _follow,
        group="A dispatch",
    ),
    Case(
        "latency-compiling",
        "from the commit of a row that comes alone to its run-now, where no process finds bytecode",
        "at most 10 s",
        (Figure("alone", "s", most=10.0),),
        _latency_compiling,
        group=_THROUGH_DAGSTER,
        shares="compiling servers",
    ),
)
