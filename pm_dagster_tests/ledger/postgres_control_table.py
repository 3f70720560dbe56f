"""A control plane on a real server, with the handles a test needs: rows, statuses, dispatchers, deaths, locks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any

import psycopg2
from psycopg2 import sql

from pm_dagster.config.settings import Settings
from pm_dagster.dispatch.model import EntryState
from pm_dagster.dispatch.ports import ControlPlane
from pm_dagster.ledger.control_plane import PostgresControlPlane
from pm_dagster_tests.database import fetched

_LONGEST_WAIT_SECONDS = 30.0


def eventually(true: Callable[[], bool], what: str) -> None:
    """Wait for something that another process is bound to do; the limit is only there so that a failure ends."""
    end = time.monotonic() + _LONGEST_WAIT_SECONDS
    while not true():
        assert time.monotonic() < end, f"never: {what}"
        time.sleep(0.02)


class PostgresControlTable:
    """The owner's side of a database with a ledger, and the dispatchers on it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.settings = Settings(postgres_url=url)
        self._made: list[PostgresControlPlane] = []

    def ask(self, statement: str | sql.Composable, *values: object) -> list[tuple[Any, ...]]:
        """Run one statement as the owner and commit it."""
        with closing(psycopg2.connect(self.url)) as connection, connection, connection.cursor() as cursor:
            cursor.execute(statement, values or None)
            return fetched(cursor)

    def ask_after(self, first: str, statement: str) -> list[tuple[Any, ...]]:
        """Run one statement after another in the same session, as another client does; values come as text."""
        with closing(psycopg2.connect(self.url)) as connection, connection.cursor() as cursor:
            cursor.execute(first)
            cursor.execute(statement)
            return cursor.fetchall()

    def add(
        self, *, job_id: int | None = 1001, previous: int | None = None, age: float = 0.0, status: str = "WAITING"
    ) -> int:
        """A row of the control table; ``age`` in seconds."""
        statement = """
            INSERT INTO mm_run_plc (wkf_job_id, wkf_job_run_id, run_sttus_name, cntrt_id, file_name, rgstr_file_time)
            VALUES (%s, %s, %s, 7, 'orders.csv', now() AT TIME ZONE 'UTC' - %s * interval '1 second')
            RETURNING run_id"""
        return int(self.ask(statement, job_id, previous, status, age)[0][0])

    def status(self, run_id: int) -> str:
        """What the control table says."""
        return str(self.ask("SELECT run_sttus_name FROM mm_run_plc WHERE run_id = %s", run_id)[0][0])

    def set_status(self, run_id: int, status: str) -> None:
        """Change the row as its owner or its own job would."""
        self.ask("UPDATE mm_run_plc SET run_sttus_name = %s WHERE run_id = %s", status, run_id)

    def correct(self, run_id: int, job_id: int | None) -> None:
        """Give the row a job id, or take it away."""
        self.ask("UPDATE mm_run_plc SET wkf_job_id = %s WHERE run_id = %s", job_id, run_id)

    def rename(self, run_id: int, file_name: str) -> None:
        """Correct the file name of the row."""
        self.ask("UPDATE mm_run_plc SET file_name = %s WHERE run_id = %s", file_name, run_id)

    def touch(self, run_id: int) -> None:
        """Write the row without changing what it asks for."""
        self.ask("UPDATE mm_run_plc SET msg = 'touched' WHERE run_id = %s", run_id)

    def name_run(self, run_id: int, previous: int) -> None:
        """Give the row the Databricks run that is to be repaired."""
        self.ask("UPDATE mm_run_plc SET wkf_job_run_id = %s WHERE run_id = %s", previous, run_id)

    def remove(self, run_id: int) -> None:
        """Delete the row."""
        self.ask("DELETE FROM mm_run_plc WHERE run_id = %s", run_id)

    def dispatcher(
        self,
        *,
        actor: str = "test",
        **settings: Any,  # noqa: ANN401 settings are of many types
    ) -> PostgresControlPlane:
        """A dispatcher of its own."""
        control = PostgresControlPlane(replace(self.settings, **settings), actor=actor)
        self._made.append(control)
        return control

    def die(self, control: ControlPlane) -> None:
        """End the dispatcher's connection as its death would, without a goodbye."""
        assert isinstance(control, PostgresControlPlane)
        connection = control._session._connection
        assert connection is not None
        pid = connection.get_backend_pid()
        connection.close()
        alive = "SELECT FROM pg_stat_activity WHERE pid = %s"
        eventually(lambda: not self.ask(alive, pid), "the server forgets the closed connection")

    def stored(self, entry_id: int) -> tuple[EntryState, bool]:
        """State and ambiguity of an entry, as the ledger has them."""
        ((state, ambiguous),) = self.ask(
            "SELECT state, ambiguous FROM process_manager.entry WHERE entry_id = %s", entry_id
        )
        return EntryState(state), ambiguous

    def pass_time(self, seconds: float) -> None:
        """Let waits recorded in the ledger run down."""
        back = "UPDATE process_manager.entry SET not_before = not_before - %s * interval '1 second'"
        self.ask(back, seconds)

    @contextmanager
    def locked(self, run_id: int) -> Iterator[None]:
        """Hold the row locked in another transaction."""
        with closing(psycopg2.connect(self.url)) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT FROM mm_run_plc WHERE run_id = %s FOR UPDATE", (run_id,))
            yield
            connection.rollback()

    def loosen_view(self) -> None:
        """Let the view take letters of any case for waiting, which the table does not."""
        self.ask("""CREATE OR REPLACE VIEW mm_run_wait_vw AS SELECT run_id, cntrt_id, file_name, wkf_job_id,
                    wkf_job_run_id FROM mm_run_plc WHERE upper(run_sttus_name) = 'WAITING'""")

    def ledger(self, run_id: int) -> list[tuple[int, str, bool]]:
        """Generation, state and openness of each entry of a row, oldest first."""
        query = "SELECT generation, state, open FROM process_manager.entry WHERE run_id = %s ORDER BY generation"
        return [(generation, state, is_open) for generation, state, is_open in self.ask(query, run_id)]

    def events(self, run_id: int) -> list[str]:
        """The kinds of the row's events, in order."""
        query = """SELECT v.kind FROM process_manager.event v JOIN process_manager.entry e USING (entry_id)
                   WHERE e.run_id = %s ORDER BY event_id"""
        return [kind for (kind,) in self.ask(query, run_id)]

    def leave(self) -> None:
        """Close every connection."""
        for control in self._made:
            control.end()
