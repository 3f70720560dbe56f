"""The index that is proposed to the owner of a big control table, and when none is."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from typing import Any

import psycopg2
import pytest

from pm_dagster.ledger.index_advice import proposed_index
from pm_dagster_tests.ledger.postgres_control_table import PostgresControlTable

_MANY = """
INSERT INTO mm_run_plc (run_sttus_name, rgstr_file_time)
SELECT 'SUCCEEDED', now() FROM generate_series(1, 11000)"""
_PROPOSED = (
    'CREATE INDEX CONCURRENTLY ON "public"."mm_run_plc" ("rgstr_file_time", "run_id")'
    " WHERE \"run_sttus_name\" = 'WAITING'"
)

_PARTITIONED = """
CREATE TABLE parts (LIKE mm_run_plc) PARTITION BY RANGE (run_id);
ALTER TABLE mm_run_plc ALTER run_id DROP IDENTITY;
ALTER TABLE parts ATTACH PARTITION mm_run_plc DEFAULT;
ALTER TABLE mm_run_plc RENAME TO part;
ALTER TABLE parts RENAME TO mm_run_plc;
ANALYZE mm_run_plc"""


@pytest.fixture
def big(table: PostgresControlTable) -> PostgresControlTable:
    """A control table of 11,000 rows that has lost the owner's index."""
    table.ask("DROP INDEX mm_run_plc_waiting_ix")
    table.ask(_MANY)
    table.ask("ANALYZE mm_run_plc")
    return table


def _proposed(table: PostgresControlTable, **settings: Any) -> str | None:  # noqa: ANN401 settings are of many types
    with closing(psycopg2.connect(table.url)) as connection:
        return proposed_index(connection, replace(table.settings, **settings))


def test_what_is_proposed_can_be_run_and_is_proposed_once(big: PostgresControlTable) -> None:
    statement = _proposed(big)
    assert statement == _PROPOSED
    assert big.ask("SELECT count(*) FROM pg_indexes WHERE tablename = 'mm_run_plc'") == [(1,)]
    with closing(psycopg2.connect(big.url)) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        cursor.execute(statement)
    assert _proposed(big) is None


def test_the_words_and_names_of_the_owner_are_quoted(big: PostgresControlTable) -> None:
    big.ask('ALTER TABLE mm_run_plc RENAME run_sttus_name TO "sta""tus 100%"')
    statement = _proposed(big, column_status='sta"tus 100%', status_waiting="it's", column_order="nowhere")
    assert statement is not None
    assert statement.endswith("""("run_id") WHERE "sta""tus 100%" = 'it''s'""")
    with closing(psycopg2.connect(big.url)) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        cursor.execute(statement)
    assert _proposed(big, column_status='sta"tus 100%', status_waiting="it's", column_order="nowhere") is None


@pytest.mark.parametrize(
    "index",
    [
        "(run_sttus_name)",
        "(run_sttus_name, run_id)",
        "(run_id) WHERE run_sttus_name = 'WAITING'",
        "(cntrt_id) WHERE run_sttus_name IN ('WAITING', 'HELD')",
        "(run_id) WHERE run_sttus_name <> 'SUCCEEDED'",
    ],
)
def test_an_index_that_serves_is_enough(big: PostgresControlTable, index: str) -> None:
    big.ask("CREATE INDEX ON mm_run_plc " + index)
    assert _proposed(big) is None


@pytest.mark.parametrize(
    "index",
    ["(run_id, run_sttus_name)", "(run_sttus_name) WHERE cntrt_id = 7", "(run_id) WHERE run_sttus_name = 'FAILED'"],
)
def test_an_index_that_does_not_serve_is_not(big: PostgresControlTable, index: str) -> None:
    big.ask("CREATE INDEX ON mm_run_plc " + index)
    assert _proposed(big) == _PROPOSED


def test_nothing_is_proposed_for_a_small_table(table: PostgresControlTable) -> None:
    table.ask("DROP INDEX mm_run_plc_waiting_ix")
    table.add()
    assert _proposed(table) is None
    table.ask("ANALYZE mm_run_plc")
    assert _proposed(table) is None


@pytest.mark.parametrize(
    "statements",
    [
        "ALTER TABLE mm_run_plc RENAME TO under; CREATE VIEW mm_run_plc AS SELECT * FROM under",
        _PARTITIONED,
    ],
    ids=["view", "partitioned"],
)
def test_other_relations_are_left_alone(big: PostgresControlTable, statements: str) -> None:
    big.ask(statements)
    assert _proposed(big) is None
