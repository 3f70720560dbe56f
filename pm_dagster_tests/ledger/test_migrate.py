"""The ledger is made once, whoever asks and how often."""

from __future__ import annotations

import subprocess
import sys
import traceback
from dataclasses import replace

import pytest
from psycopg2 import sql
from psycopg2.extensions import make_dsn

from pm_dagster.config.settings import Settings
from pm_dagster.errors import ConfigurationError, ControlPlaneUnavailable
from pm_dagster.ledger.control_plane import PostgresControlPlane
from pm_dagster.ledger.migrate import Migrated, initialise
from pm_dagster.ledger.schema import LEDGER_VERSION
from pm_dagster_tests.contracts.steps import claim_one, send
from pm_dagster_tests.ledger.postgres_control_table import PostgresControlTable

_INITIALISE = """
import sys
from pm_dagster.config.settings import Settings
from pm_dagster.ledger.migrate import initialise
initialise(Settings(postgres_url=sys.argv[1]))
"""


def test_the_second_time_changes_nothing(database_url: str) -> None:
    settings = Settings(postgres_url=database_url)
    assert initialise(settings) == Migrated(None, LEDGER_VERSION)
    assert initialise(settings) == Migrated(LEDGER_VERSION, LEDGER_VERSION)


def test_a_ledger_of_the_first_version_is_brought_up_to_date(table: PostgresControlTable) -> None:
    """With what a dispatcher left in it."""
    table.add()
    entry = claim_one(table.dispatcher())
    table.leave()
    table.ask("DROP TABLE process_manager.api_budget")
    table.ask(
        "DROP INDEX process_manager.entry_closed, process_manager.entry_refused, process_manager.entry_dispatcher"
    )
    table.ask("ALTER TABLE process_manager.dispatcher DROP COLUMN writes")
    table.ask("ALTER TABLE process_manager.dispatcher DROP COLUMN seen_at")
    table.ask("DROP INDEX process_manager.dispatcher_actor, process_manager.entry_run, process_manager.entry_previous")
    table.ask("ALTER TABLE process_manager.dispatcher DROP COLUMN hosts")
    table.ask("ALTER TABLE process_manager.entry DROP COLUMN row_version, DROP COLUMN superseded")
    for name in ("database", "hosts", "system", "timeline", "at"):
        table.ask(sql.SQL("ALTER TABLE process_manager.identity DROP COLUMN {}").format(sql.Identifier(f"made_{name}")))
    table.ask("ALTER TABLE process_manager.entry DROP COLUMN rule")
    table.ask("UPDATE process_manager.alembic_version SET version_num = '0001'")
    assert initialise(table.settings) == Migrated("0001", LEDGER_VERSION)
    heir = table.dispatcher()
    again = claim_one(heir)
    send(heir, again)
    assert again.entry_id == entry.entry_id


def test_two_processes_at_once_make_one_ledger(database_url: str) -> None:
    command = [sys.executable, "-c", _INITIALISE, database_url]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    assert [(process.communicate(timeout=120)[1], process.returncode) for process in both] == [("", 0), ("", 0)]
    assert PostgresControlTable(database_url).ask("SELECT count(*) FROM process_manager.identity") == [(1,)]


def test_a_dispatch_before_the_ledger_says_what_to_do(database_url: str) -> None:
    control = PostgresControlPlane(Settings(postgres_url=database_url), actor="test")
    with pytest.raises(ConfigurationError, match="pm init"):
        control.waiting(1)


def test_a_ledger_of_another_version_is_refused(table: PostgresControlTable) -> None:
    table.ask("UPDATE process_manager.alembic_version SET version_num = '9999'")
    with pytest.raises(ConfigurationError, match="version 9999, this program needs"):
        table.dispatcher().waiting(1)


def test_an_unreachable_database_is_unavailable(database_url: str) -> None:
    nowhere = Settings(postgres_url=make_dsn(database_url, host="127.0.0.1", port=1))
    with pytest.raises(ControlPlaneUnavailable):
        initialise(nowhere)


def test_an_unusable_url_is_named_without_its_value() -> None:
    password = "".join(reversed("2retnuh"))  # not as it stands in the source, which a traceback shows
    with pytest.raises(ConfigurationError, match="PM_POSTGRES_URL") as caught:
        initialise(Settings(postgres_url=f"postgresql://me:{password}@[nowhere"))
    assert password not in "".join(traceback.format_exception(caught.value))


def test_a_user_without_the_right_to_make_a_schema_is_told(table: PostgresControlTable) -> None:
    table.ask("DROP SCHEMA process_manager CASCADE")
    table.ask("DO $$ BEGIN CREATE ROLE nobody_special LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$")
    settings = replace(table.settings, postgres_url=make_dsn(table.url, options="-c role=nobody_special"))
    with pytest.raises(ConfigurationError, match="permission denied"):
        initialise(settings)
