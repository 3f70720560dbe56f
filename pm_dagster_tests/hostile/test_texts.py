"""Texts of the control table and of the workspace, and databases in other encodings: unchanged, or refused alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from importlib.resources import files

import psycopg2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg2 import sql
from psycopg2.extensions import make_dsn

from pm_dagster.config.settings import Settings
from pm_dagster.ledger.migrate import initialise
from pm_dagster.sandbox.postgres import EmbeddedPostgres
from pm_dagster_tests.hostile.deployment import UNKNOWN_JOB, HostileDeployment

NASTY = [
    'it\'s "quoted"',
    "back\\slash \\n \\u0000 \\x1b",
    "100% %s %(x)s {y} {{z}} $1 $$ ?",
    "'; DROP TABLE mm_run_plc; --",
    '{"a": ["<b>&amp;</b>"]}',
    "\x01\x02\x1b[31mred\x1b]8;;http://x\x07\x7f\x9b2J",
    "поставка 納品 مرحبا \u202e\u200f\u200d 🚚 e\u0301",
    " spaces \u00a0 \u2028 and\r\nlines\t",
    "=1+1",
    "\ufeff\ufffe\uffff\U0010ffff",
]


def test_texts_arrive_as_they_are(deployment: HostileDeployment) -> None:
    rows = {deployment.add(file_name=text): text for text in NASTY}
    deployment.dispatch()
    assert {row: deployment.sent(row)["FILE_NAME"] for row in rows} == rows
    assert {deployment.status(row) for row in rows} == {"SCHEDULED"}
    assert dict(deployment.sql("SELECT run_id, parameters ->> 'FILE_NAME' FROM process_manager.entry")) == rows


_TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=60)


@given(st.lists(_TEXTS, min_size=1, max_size=8))
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_texts_arrive_as_they_are(deployment: HostileDeployment, texts: list[str]) -> None:
    rows = [deployment.add(file_name=text) for text in texts]
    deployment.dispatch()
    assert [deployment.sent(row)["FILE_NAME"] for row in rows] == texts


def test_texts_of_any_length_arrive_or_are_refused(deployment: HostileDeployment) -> None:
    deployment.sql("DROP VIEW mm_run_wait_vw; ALTER TABLE mm_run_plc ALTER file_name TYPE text")
    deployment.sql("CREATE VIEW mm_run_wait_vw AS SELECT * FROM mm_run_plc")
    fits, long, huge, after = (deployment.add(file_name="x" * size) for size in (9_900, 10_000, 10_000_000, 1))
    deployment.dispatch()
    assert len(deployment.sent(fits)["FILE_NAME"]) == 9_900
    assert [deployment.status(row) for row in (fits, long, huge, after)] == [
        "SCHEDULED",
        "FAILED",
        "FAILED",
        "SCHEDULED",
    ]
    (reason,) = deployment.sql("SELECT state_msg FROM mm_run_plc WHERE run_id = %s", huge)[0]
    assert "more than the 10000" in reason
    assert len(reason) < 300


def test_hostile_words_of_the_workspace_come_back_into_ledger_and_table(deployment: HostileDeployment) -> None:
    text = "'; DROP TABLE x; -- %s {y} \\ \x01\x1b[31m \u202e 🚚 \ud800 \x00 $1"
    bad, good = deployment.add(job_id=UNKNOWN_JOB), deployment.add()
    body = json.dumps({"error_code": "INVALID_PARAMETER_VALUE", "message": text})
    deployment.workspace.faults.add("run-now", "status", status=400, body=body, match=str(UNKNOWN_JOB))
    deployment.dispatch()
    assert (deployment.status(bad), deployment.status(good)) == ("FAILED", "SCHEDULED")
    (reason,) = deployment.sql("SELECT state_msg FROM mm_run_plc WHERE run_id = %s", bad)[0]
    assert "'; DROP TABLE x; -- %s {y} \\ \x01\x1b[31m \u202e 🚚 ?  $1" in reason


@pytest.fixture(params=["LATIN1", "SQL_ASCII", "EUC_JP"])
def other_encoding(
    request: pytest.FixtureRequest, postgres: EmbeddedPostgres, deployment: HostileDeployment
) -> Iterator[HostileDeployment]:
    """A deployment whose database is not in UTF-8."""
    name = f"in_{request.param.lower()}"
    make = sql.SQL("CREATE DATABASE {} TEMPLATE template0 ENCODING {} LC_COLLATE 'C' LC_CTYPE 'C'")
    with closing(psycopg2.connect(deployment.database_url)) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        cursor.execute(make.format(sql.Identifier(name), sql.Literal(request.param)))
    url = make_dsn(deployment.database_url, dbname=name)
    made = HostileDeployment(url, deployment.workspace)
    made.sql(files("pm_dagster.sandbox").joinpath("control_schema.sql").read_text())
    initialise(Settings(postgres_url=url))
    yield made
    postgres.drop_database(name)


def test_a_database_in_another_encoding_takes_any_message(other_encoding: HostileDeployment) -> None:
    deployment = other_encoding
    bad, good = deployment.add(job_id=UNKNOWN_JOB), deployment.add()
    body = json.dumps({"error_code": "INVALID_PARAMETER_VALUE", "message": "納品 🚚 ä no"})
    deployment.workspace.faults.add("run-now", "status", status=400, body=body, match=str(UNKNOWN_JOB))
    deployment.dispatch()
    assert (deployment.status(bad), deployment.status(good)) == ("FAILED", "SCHEDULED")
    (reason,) = deployment.sql("SELECT state_msg FROM mm_run_plc WHERE run_id = %s", bad)[0]
    assert reason.endswith(" no")


@pytest.mark.parametrize("other_encoding", ["SQL_ASCII"], indirect=True)
def test_bytes_that_are_no_text_stop_no_other_row(other_encoding: HostileDeployment) -> None:
    deployment = other_encoding
    first, bad, last = deployment.add(), deployment.add(), deployment.add()
    deployment.sql("UPDATE mm_run_plc SET file_name = E'\\xff\\xfe' WHERE run_id = %s", bad)
    deployment.dispatch()
    assert [deployment.status(row) for row in (first, bad, last)] == ["SCHEDULED", "FAILED", "SCHEDULED"]
