"""The harness of real servers: Postgres, and the local workspace over HTTP with the official SDK."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import psycopg2
from databricks.sdk.core import Config

from pm_dagster.config.settings import Settings
from pm_dagster.databricks.runs import SdkRuns
from pm_dagster.dispatch.model import Call
from pm_dagster.dispatch.ports import ControlPlane, DatabricksRuns
from pm_dagster.ledger.control_plane import PostgresControlPlane
from pm_dagster.ledger.redrive import redrive
from pm_dagster.sandbox.workspace.attempts import RepairRequest
from pm_dagster.sandbox.workspace.errors import ApiError
from pm_dagster.sandbox.workspace.model import Run
from pm_dagster.sandbox.workspace.server import LocalWorkspace
from pm_dagster_tests.database import fetched
from pm_dagster_tests.ledger.postgres_control_table import eventually
from pm_dagster_tests.model.harness import FILE_NAME, JOBS, SETTINGS, EntryNow, RowNow, RunNow

#: A job with room for one run, so that the next is skipped.
_NARROW_JOB = 6
_PARAMETERS = {"CNTRT_ID": "7", "FILE_NAME": FILE_NAME}
_FAULTS: dict[str, dict[str, Any]] = {
    "lost": {"kind": "reset"},
    "foreign": {"kind": "status", "status": 404, "body": "<html>Not Found</html>"},
    "unsent": {"kind": "status", "status": 503},
    "throttled": {"kind": "status", "status": 429, "headers": {"Retry-After": "3"}},
    "long": {"kind": "status", "status": 429, "headers": {"Retry-After": "300"}},
    "credentials": {"kind": "status", "status": 401},
    "busy": {"kind": "status", "status": 409, "code": "INVALID_STATE"},
    "refused": {"kind": "status", "status": 403, "code": "PERMISSION_DENIED"},
}


class RealServers:
    """A database and a workspace for many examples, each of which begins with both empty."""

    def __init__(self, url: str, workspace: LocalWorkspace) -> None:
        self.settings = replace(SETTINGS, postgres_url=url, allow_http=True)
        self.workspace = workspace
        config = Config(host=workspace.host, token=workspace.token)
        self.jobs_api = SdkRuns(config, self.settings)
        self.connection = psycopg2.connect(url)
        self.connection.autocommit = True

    def ask(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """Run one statement as the owner."""
        with self.connection.cursor() as cursor:
            cursor.execute(statement, values or None)
            return fetched(cursor)

    def harness(self) -> RealHarness:
        """Everything empty."""
        tables = ("public.mm_run_plc", *(f"process_manager.{name}" for name in ("event", "entry", "dispatcher")))
        self.ask(f"TRUNCATE {', '.join(tables)}")
        self.workspace.reset()
        return RealHarness(self)


@contextmanager
def real_servers(url: str) -> Iterator[RealServers]:
    """The servers, and their end."""
    with LocalWorkspace() as workspace:
        servers = RealServers(url, workspace)
        yield servers
        servers.connection.close()


class RealHarness:
    """See ``Harness``."""

    def __init__(self, servers: RealServers) -> None:
        self._servers = servers
        self._state = servers.workspace.state
        self._ask = servers.ask
        self.secret = servers.workspace.token
        self._controls: list[PostgresControlPlane] = []
        for job_id in JOBS:
            self.set_job_exists(job_id, exists=True)
        self._state.add_job("narrow", job_id=_NARROW_JOB, seconds=None, max_concurrent_runs=1)
        self._state.start_run(_NARROW_JOB)

    def rows(self) -> dict[int, RowNow]:
        """The control table."""
        found = self._ask("""SELECT run_id, run_sttus_name, wkf_job_id, wkf_job_run_id, coalesce(state_msg, '')
                             FROM mm_run_plc ORDER BY run_id""")
        return {run_id: RowNow(*row) for run_id, *row in found}

    def ledger(self) -> list[EntryNow]:
        """The ledger."""
        found = self._ask("""SELECT entry_id, run_id, generation, state, open, branch, accepted_run_id,
                                    coalesce(reason, ''), dispatcher_id FROM process_manager.entry ORDER BY entry_id""")
        return [EntryNow(*row) for row in found]

    def texts(self) -> list[str]:
        """Reasons, events and messages."""
        found = self._ask("""SELECT detail FROM process_manager.event UNION ALL
                             SELECT to_jsonb(e)::text FROM process_manager.entry e UNION ALL
                             SELECT to_jsonb(t)::text FROM mm_run_plc t""")
        return [text for (text,) in found]

    def runs(self) -> dict[int, RunNow]:
        """The workspace's runs, the oldest first."""
        return {run.run_id: _run(run) for run in reversed(self._state.runs()) if run.job_id != _NARROW_JOB}

    def add_row(self, job_id: int | None, previous: int | None) -> int:
        """A row that waits."""
        statement = """
            INSERT INTO mm_run_plc (wkf_job_id, wkf_job_run_id, run_sttus_name, cntrt_id, file_name, rgstr_file_time)
            VALUES (%s, %s, 'WAITING', 7, %s, now()) RETURNING run_id"""
        return int(self._ask(statement, job_id, previous, FILE_NAME)[0][0])

    def set_row(self, row: int, status: str, previous: int | None) -> None:
        """Change status and run id."""
        statement = "UPDATE mm_run_plc SET run_sttus_name = %s, wkf_job_run_id = %s WHERE run_id = %s"
        self._ask(statement, status, previous, row)

    def set_job(self, row: int, job_id: int) -> None:
        """Change the job."""
        self._ask("UPDATE mm_run_plc SET wkf_job_id = %s WHERE run_id = %s", job_id, row)

    def remove_row(self, row: int) -> None:
        """Delete a row."""
        self._ask("DELETE FROM mm_run_plc WHERE run_id = %s", row)

    def redrive(self, row: int) -> None:
        """What ``pm redrive`` does."""
        redrive(self._servers.connection, self._servers.settings, [row], "the model")

    def past_run(self, outcome: str, repairs: int) -> int:
        """A run that was there before; its job was there at its time."""
        if outcome == "skipped":
            return self._state.start_run(_NARROW_JOB, queue=False)[0].run_id
        gone = not any(job.job_id == JOBS[0] for job in self._state.jobs())
        self.set_job_exists(JOBS[0], exists=True)
        if outcome == "active":
            run = self._state.start_run(JOBS[0])[0]
        else:
            run = self._state.add_run(JOBS[0], outcome=outcome, repairs=repairs)
        self.set_job_exists(JOBS[0], exists=not gone)
        return run.run_id

    def finish(self, run_id: int, outcome: str) -> None:
        """End a run."""
        self._state.finish(run_id, outcome)

    def delete(self, run_id: int) -> None:
        """Let a run vanish."""
        self._state.delete_run(run_id)

    def start_elsewhere(self, row: int) -> None:
        """By hand, with the row's parameters."""
        job_id = self.rows()[row].job_id
        with suppress(ApiError):
            self._state.start_run(int(str(job_id or 0)), {"RUN_ID": str(row), **_PARAMETERS})

    def repair_elsewhere(self, run_id: int) -> None:
        """By hand, if the workspace lets them."""
        latest = self._state.run(run_id).latest_repair_id
        with suppress(ApiError):
            self._state.repair(RepairRequest(run_id, latest, rerun_all_failed_tasks=True))

    def set_job_exists(self, job_id: int, *, exists: bool) -> None:
        """Delete a job, or create it again."""
        there = any(job.job_id == job_id for job in self._state.jobs())
        if exists and not there:
            self._state.add_job(f"job {job_id}", job_id=job_id, seconds=None, max_concurrent_runs=1000)
        elif there and not exists:
            self._state.delete_job(job_id)

    def lag(self, reads: int) -> None:
        """Each repair shows after so many reads."""
        self._servers.workspace.switches.set(history_lag_reads=reads)

    def arm(self, call: Call, kind: str, *, after: bool, good: int) -> None:
        """Let a call go wrong, with the token in what the workspace says."""
        when = "after" if after and kind in ("lost", "foreign") else "before"
        details = {"message": f"the token is {self.secret}", "skip": good, **_FAULTS[kind]}
        self._servers.workspace.faults.add(call.value, when=when, **details)

    def calm(self) -> None:
        """Only good days."""
        self._servers.workspace.faults.clear()
        self._servers.workspace.switches.reset()

    def pass_time(self, seconds: float) -> None:
        """Waits run down."""
        self._ask("UPDATE process_manager.entry SET not_before = not_before - %s * interval '1 second'", seconds)

    def control(self, settings: Settings) -> ControlPlane:
        """A dispatcher's control plane."""
        control = PostgresControlPlane(replace(settings, postgres_url=self._servers.settings.postgres_url), "the model")
        self._controls.append(control)
        return control

    def identity(self, control: ControlPlane) -> int | None:
        """Its number."""
        return _postgres(control)._session._me

    def jobs_api(self) -> DatabricksRuns:
        """The workspace, through the SDK."""
        return self._servers.jobs_api

    def die(self, control: ControlPlane) -> None:
        """Its connection ends with it."""
        self.lose(control)
        self._controls.remove(_postgres(control))

    def lose(self, control: ControlPlane) -> None:
        """Its connection is ended from the server's side; the dispatcher does not notice until it writes."""
        connection = _postgres(control)._session._connection
        if connection is None or connection.closed:
            return
        pid = connection.get_backend_pid()
        self._ask("SELECT pg_terminate_backend(%s)", pid)
        gone = "SELECT FROM pg_stat_activity WHERE pid = %s"
        eventually(lambda: not self._ask(gone, pid), "the server forgets the session")

    def leave(self) -> None:
        """Close what is left."""
        for control in self._controls:
            control.end()


def _postgres(control: ControlPlane) -> PostgresControlPlane:
    assert isinstance(control, PostgresControlPlane)
    return control


def _run(run: Run) -> RunNow:
    last = run.last
    return RunNow(run.job_id, dict(run.parameters), len(run.attempts), last.active, last.result == "SUCCESS")
