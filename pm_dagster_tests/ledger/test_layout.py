"""Other owners' views and tables: what fits works, what does not is named."""

from __future__ import annotations

from typing import Any

import pytest
from psycopg2.extensions import make_dsn

from pm_dagster.config.settings import Settings
from pm_dagster.errors import ConfigurationError
from pm_dagster.ledger.control_plane import PostgresControlPlane
from pm_dagster_tests.contracts.steps import claim_one, ids, send
from pm_dagster_tests.ledger.postgres_control_table import PostgresControlTable


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"schema": "nope"}, ["nope.mm_run_wait_vw", "PM_WAIT_VIEW", "no tables or views at all"]),
        ({"wait_view": "nope"}, ["public.nope", "PM_WAIT_VIEW", "mm_run_wait_vw"]),
        ({"run_table": "nope"}, ["public.nope", "PM_RUN_TABLE", "mm_run_plc"]),
        ({"column_run_id": "nope"}, ["nope", "view public.mm_run_wait_vw", "it has: run_id, cntrt_id"]),
        ({"column_job_id": "nope"}, ["nope", "view public.mm_run_wait_vw"]),
        ({"column_job_run_id": "nope"}, ["nope", "view public.mm_run_wait_vw"]),
        ({"column_status": "nope"}, ["nope", "table public.mm_run_plc", "it has: run_id, wkf_job_run_id"]),
        ({"column_order": "nope"}, ["nope", "PM_COLUMN_ORDER", "neither in view"]),
        ({"job_parameters": (("A", "nope"),)}, ["nope", "view public.mm_run_wait_vw"]),
    ],
)
def test_what_is_missing_is_named_with_what_was_found(
    table: PostgresControlTable, settings: dict[str, Any], named: list[str]
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        table.dispatcher(**settings).waiting(1)
    assert [words for words in named if words not in str(caught.value)] == []


def test_a_run_id_of_text_is_refused(table: PostgresControlTable) -> None:
    with pytest.raises(ConfigurationError, match="must be an integer type"):
        table.dispatcher(column_run_id="file_name").waiting(1)


def test_a_column_too_narrow_for_a_databricks_run_id_is_refused_before_anything_is_sent(
    table: PostgresControlTable,
) -> None:
    table.ask("DROP VIEW mm_run_wait_vw")
    table.ask("ALTER TABLE mm_run_plc ALTER wkf_job_run_id TYPE integer")
    table.ask(
        "CREATE VIEW mm_run_wait_vw AS SELECT run_id, cntrt_id, file_name, wkf_job_id, wkf_job_run_id FROM mm_run_plc"
        " WHERE run_sttus_name = 'WAITING'"
    )
    with pytest.raises(ConfigurationError, match=r"wkf_job_run_id .* is integer.*bigint"):
        table.dispatcher().waiting(1)


def test_a_missing_privilege_is_named(table: PostgresControlTable) -> None:
    table.ask("DO $$ BEGIN CREATE ROLE reads_little LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$")
    table.ask("GRANT USAGE ON SCHEMA process_manager TO reads_little")
    table.ask("GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA process_manager TO reads_little")
    url = make_dsn(table.url, options="-c role=reads_little")
    control = PostgresControlPlane(Settings(postgres_url=url), actor="test")
    with pytest.raises(ConfigurationError, match=r"lacks a privilege.*mm_run_wait_vw"):
        control.waiting(1)
    control.end()


def test_without_an_order_column_the_run_id_decides(table: PostgresControlTable) -> None:
    first, second = table.add(age=1), table.add(age=100)
    control = table.dispatcher(column_order="")
    assert ids(control) == [first, second]
    assert control.backlog().oldest_seconds is None


def test_a_view_with_the_status_is_filtered_by_it(table: PostgresControlTable) -> None:
    table.ask("CREATE VIEW everything AS SELECT * FROM mm_run_plc")
    table.add(status="RUNNING")
    waits = table.add()
    control = table.dispatcher(wait_view="everything")
    assert ids(control) == [waits]
    assert control.backlog().ready == 1


def test_a_row_of_the_view_that_the_table_lacks_is_named_and_not_read(table: PostgresControlTable) -> None:
    table.ask("""CREATE VIEW joined AS SELECT 999::bigint AS run_id, 1::bigint AS cntrt_id, 'f' AS file_name,
                 1::bigint AS wkf_job_id, NULL::bigint AS wkf_job_run_id""")
    control = table.dispatcher(wait_view="joined")
    assert control.waiting(5) == []
    (row,) = control.untakeable(5)
    assert (row.run_id, row.settled) == (999, False)
    assert "public.mm_run_plc has no such row" in row.reason
    assert (control.backlog().ready, control.backlog().untakeable) == (0, 1)


def _other(table: PostgresControlTable, columns: str, values: str) -> dict[str, Any]:
    """An owner with other names; returns the settings that fit."""
    table.ask("CREATE SCHEMA other")
    table.ask(f"CREATE TABLE other.todo (id bigint PRIMARY KEY, job text, {columns})")
    table.ask("CREATE VIEW other.open_todo AS SELECT id, job, run FROM other.todo WHERE phase = 'NEW'")
    table.ask(f"INSERT INTO other.todo VALUES (1, '9007199254740993', {values})")  # noqa: S608 our own texts
    return {
        "schema": "other",
        "wait_view": "open_todo",
        "run_table": "todo",
        "column_run_id": "id",
        "column_job_id": "job",
        "column_job_run_id": "run",
        "column_status": "phase",
        "column_order": "",
        "job_parameters": (("ID", "id"),),
        "status_waiting": "NEW",
        "status_scheduled": "SENT",
    }


def _dispatched(table: PostgresControlTable, settings: dict[str, Any]) -> tuple[Any, ...]:
    control = table.dispatcher(**settings)
    entry = claim_one(control)
    assert entry.job_id == 2**53 + 1
    send(control, entry)
    assert control.close([entry.entry_id])[0].control_status == "SENT"
    assert ids(control) == []
    return table.ask("SELECT trim(phase::text), trim(run::text) FROM other.todo")[0]


@pytest.mark.parametrize("type_", ["bigint", "numeric", "numeric(20, 0)", "text", "varchar(40)", "char(20)"])
def test_a_run_id_column_of_any_type_is_written(table: PostgresControlTable, type_: str) -> None:
    settings = _other(table, f"phase text, run {type_}", "'NEW', NULL")
    assert _dispatched(table, settings) == ("SENT", "5")


@pytest.mark.parametrize("type_", ["text", "varchar(20)", "char(20)", "phases"])
def test_a_status_column_of_any_type_is_read_and_written(table: PostgresControlTable, type_: str) -> None:
    table.ask("CREATE TYPE phases AS ENUM ('NEW', 'SENT')")
    settings = _other(table, f"phase {type_}, run bigint", "'NEW', NULL")
    assert _dispatched(table, settings) == ("SENT", "5")


def test_a_text_column_with_the_previous_run_makes_a_repair(table: PostgresControlTable) -> None:
    settings = _other(table, "phase text, run text", "'NEW', '9007199254740995'")
    assert claim_one(table.dispatcher(**settings)).previous_run_id == 2**53 + 3


def test_a_link_or_message_too_long_for_its_column_does_not_stop_the_row(table: PostgresControlTable) -> None:
    settings = _other(table, "phase text, run bigint, run_page_url varchar(5), msg varchar(3)", "'NEW', NULL")
    assert _dispatched(table, settings) == ("SENT", "5")
    assert table.ask("SELECT run_page_url, msg FROM other.todo") == [(None, "new")]


HOSTILE = 'a "quoted" %s %(x)s {y} ; -- 100% name'


def test_hostile_names_are_names_and_nothing_else(table: PostgresControlTable) -> None:
    quoted = HOSTILE.replace('"', '""')
    table.ask(f'CREATE SCHEMA "{quoted}"')
    table.ask(f'CREATE TABLE "{quoted}"."{quoted} t" ("{quoted}" bigint PRIMARY KEY, j bigint, r bigint, s text)')
    table.ask(f'CREATE VIEW "{quoted}"."{quoted} v" AS SELECT "{quoted}", j, r FROM "{quoted}"."{quoted} t"')  # noqa: S608
    table.ask(f'INSERT INTO "{quoted}"."{quoted} t" VALUES (1, 1, NULL, \'WAITING\')')  # noqa: S608
    control = table.dispatcher(
        schema=HOSTILE,
        wait_view=f"{HOSTILE} v",
        run_table=f"{HOSTILE} t",
        column_run_id=HOSTILE,
        column_job_id="j",
        column_job_run_id="r",
        column_status="s",
        column_order=HOSTILE,
        job_parameters=(("P", HOSTILE),),
    )
    entry = claim_one(control)
    assert entry.parameters == {"P": "1"}
    send(control, entry)
    assert control.close([entry.entry_id])[0].control_status == "SCHEDULED"


def test_hostile_values_are_values_and_nothing_else(table: PostgresControlTable) -> None:
    run_id = table.add()
    file_name = "'; DROP TABLE mm_run_plc; -- %s {x} \\ \" \u2028 \U0001f600"
    table.ask("UPDATE mm_run_plc SET file_name = %s", file_name)
    control = table.dispatcher()
    entry = claim_one(control)
    assert entry.parameters["FILE_NAME"] == file_name
    send(control, entry)
    control.close([entry.entry_id])
    assert table.status(run_id) == "SCHEDULED"
