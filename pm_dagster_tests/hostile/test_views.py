"""Views with other types, with rows that cannot be read, and texts that nobody expects: one row stops no other."""

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

from pm_dagster.core.errors import ConfigurationError
from pm_dagster.core.settings import Settings
from pm_dagster.postgres.migrate import initialise
from pm_dagster.sandbox.postgres import EmbeddedPostgres
from pm_dagster_tests.hostile.world import JOB, UNKNOWN_JOB, HostileWorld

_VIEW = """
DO $$ BEGIN CREATE TYPE pair AS (a bigint, b text); EXCEPTION WHEN duplicate_object THEN NULL; END $$;
DROP VIEW IF EXISTS mm_run_wait_vw CASCADE;
CREATE VIEW mm_run_wait_vw AS SELECT run_id, {cntrt_id} AS cntrt_id, {file_name} AS file_name,
    {wkf_job_id} AS wkf_job_id, {wkf_job_run_id} AS wkf_job_run_id FROM mm_run_plc WHERE run_sttus_name = 'WAITING'
"""
_SAME = {name: name for name in ("cntrt_id", "file_name", "wkf_job_id", "wkf_job_run_id")}


def _view(world: HostileWorld, **columns: str) -> None:
    world.sql(_VIEW.format(**{**_SAME, **columns}))


def _sent(world: HostileWorld, run_id: int) -> dict[str, str]:
    """The parameters with which the row was started."""
    (run,) = [run for run in world.workspace.state.runs() if run.parameters.get("RUN_ID") == str(run_id)]
    return dict(run.parameters)


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


def test_texts_arrive_as_they_are(world: HostileWorld) -> None:
    rows = {world.add(file_name=text): text for text in NASTY}
    world.dispatch()
    assert {row: _sent(world, row)["FILE_NAME"] for row in rows} == rows
    assert {world.status(row) for row in rows} == {"SCHEDULED"}
    assert dict(world.sql("SELECT run_id, parameters ->> 'FILE_NAME' FROM process_manager.entry")) == rows


_TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=60)


@given(st.lists(_TEXTS, min_size=1, max_size=8))
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_texts_arrive_as_they_are(world: HostileWorld, texts: list[str]) -> None:
    rows = [world.add(file_name=text) for text in texts]
    world.dispatch()
    assert [_sent(world, row)["FILE_NAME"] for row in rows] == texts


def test_texts_of_any_length_arrive_or_are_refused(world: HostileWorld) -> None:
    world.sql("DROP VIEW mm_run_wait_vw; ALTER TABLE mm_run_plc ALTER file_name TYPE text")
    _view(world)
    fits, long, huge, after = (world.add(file_name="x" * size) for size in (9_900, 10_000, 10_000_000, 1))
    world.dispatch()
    assert len(_sent(world, fits)["FILE_NAME"]) == 9_900
    assert [world.status(row) for row in (fits, long, huge, after)] == ["SCHEDULED", "FAILED", "FAILED", "SCHEDULED"]
    (reason,) = world.sql("SELECT state_msg FROM mm_run_plc WHERE run_id = %s", huge)[0]
    assert "more than the 10000" in reason
    assert len(reason) < 300


def test_hostile_words_of_the_workspace_come_back_into_ledger_and_table(world: HostileWorld) -> None:
    text = "'; DROP TABLE x; -- %s {y} \\ \x01\x1b[31m \u202e 🚚 \ud800 \x00 $1"
    bad, good = world.add(job_id=UNKNOWN_JOB), world.add()
    body = json.dumps({"error_code": "INVALID_PARAMETER_VALUE", "message": text})
    world.workspace.faults.add("run-now", "status", status=400, body=body, match=str(UNKNOWN_JOB))
    world.dispatch()
    assert (world.status(bad), world.status(good)) == ("FAILED", "SCHEDULED")
    (reason,) = world.sql("SELECT state_msg FROM mm_run_plc WHERE run_id = %s", bad)[0]
    assert "'; DROP TABLE x; -- %s {y} \\ \x01\x1b[31m \u202e 🚚 ?  $1" in reason


EXOTIC = [
    ('\'{"b": [1, 2.50],  "a": "\\u0000"}\'::json', '{"b": [1, 2.50],  "a": "\\u0000"}'),
    ("'\"\\ud800\"'::json", '"\\ud800"'),
    ("'{\"b\": 2.50}'::jsonb", '{"b": 2.50}'),
    ("'\\x00ff'::bytea", "\\x00ff"),
    ("ARRAY['a', NULL, 'b c']", '{a,NULL,"b c"}'),
    ("ARRAY['0044-03-15 BC'::date]", '{"0044-03-15 BC"}'),
    ("'24:00:00'::time", "24:00:00"),
    ("'24:00:00+15:59'::timetz", "24:00:00+15:59"),
    ("interval '170000000 years'", "170000000 years"),
    ("'infinity'::date", "infinity"),
    ("'0044-03-15 BC'::timestamp", "0044-03-15 00:00:00 BC"),
    ("daterange('-infinity', '0044-03-15 BC')", '[-infinity,"0044-03-15 BC")'),
    ("int8range(1, 9223372036854775807)", "[1,9223372036854775807)"),
    ("ROW(1, 'x y')::pair", '(1,"x y")'),
    ("'NaN'::numeric", "NaN"),
    ("'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'::uuid", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
    ("12.50::numeric(10, 2)", "12.50"),
    ("9007199254740993::bigint", "9007199254740993"),
    ("NULL::json", ""),
    ("NULL::text[]", ""),
    ("'a'::\"char\"", "a"),
    ("to_tsvector('simple', 'b a')", "'a':2 'b':1"),
    ("point(1, 2)", "(1,2)"),
]


def test_parameters_of_all_types_arrive_as_the_server_writes_them(world: HostileWorld) -> None:
    columns = ", ".join(f"{value} AS c{number}" for number, (value, _) in enumerate(EXOTIC))
    _view(world)
    world.sql(sql.SQL("CREATE VIEW exotic AS SELECT *, {} FROM mm_run_wait_vw").format(sql.SQL(columns)))
    row = world.add()
    parameters = (("RUN_ID", "run_id"), *((f"P{number}", f"c{number}") for number in range(len(EXOTIC))))
    world.dispatch(wait_view="exotic", job_parameters=parameters)
    sent = _sent(world, row)
    assert [sent[f"P{number}"] for number in range(len(EXOTIC))] == [text for _, text in EXOTIC]
    assert world.status(row) == "SCHEDULED"


IDS: list[tuple[str, int | None]] = [
    ("wkf_job_id::text", JOB),
    ("wkf_job_id::numeric", JOB),
    ("(' ' || wkf_job_id || ' ')", JOB),
    ("to_json(wkf_job_id)", JOB),
    ("to_jsonb(wkf_job_id)", JOB),
    ("wkf_job_id::double precision", None),
    ("'1e5'::text", None),
    ("'12.0'::text", None),
    ("12.5::numeric", None),
    ("'NaN'::numeric", None),
    ("'Infinity'::numeric", None),
    ("'NaN'::double precision", None),
    ("0::bigint", None),
    ("-1::bigint", None),
    ("9223372036854775808::numeric", None),
    ("ARRAY[wkf_job_id]", None),
    ("ROW(wkf_job_id, 'x')::pair", None),
    ("true", None),
    ("'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'::uuid", None),
    ("now()", None),
    ("interval '170000000 years'", None),
    ("'24:00'::time", None),
    ("'{\"a\": 1}'::json", None),
    ("'\"\\u0000\"'::json", None),
    ("NULL::bigint", None),
]


@pytest.mark.parametrize("column", ["wkf_job_id", "wkf_job_run_id"])
def test_an_id_of_any_type_is_unchanged_or_the_row_refused(world: HostileWorld, column: str) -> None:
    for value, job in IDS:
        run = world.workspace.state.add_run(JOB).run_id
        _view(world, **{column: value.replace("wkf_job_id", column)})
        row = world.add(run=run if column == "wkf_job_run_id" else None)
        world.dispatch()
        good = bool(job) or (column == "wkf_job_run_id" and value.startswith("NULL"))
        assert (value, world.status(row)) == (value, "SCHEDULED" if good else "FAILED")
        assert world.started(row) == good


@pytest.mark.parametrize("job", [1, 2**53 + 1, 2**63 - 1])
def test_ids_at_the_edges_keep_every_digit(world: HostileWorld, job: int) -> None:
    world.workspace.state.add_job("edge", job_id=job, seconds=None)
    world.sql("INSERT INTO mm_run_plc (run_id, run_sttus_name, wkf_job_id) VALUES (%s, 'WAITING', %s)", 2**63 - 1, job)
    world.dispatch()
    assert (world.status(2**63 - 1), world.started(2**63 - 1)) == ("SCHEDULED", 1)


def test_run_ids_that_no_row_should_have(world: HostileWorld) -> None:
    good = world.add()
    for run_id in (0, -5, -(2**63)):
        world.sql("INSERT INTO mm_run_plc (run_id, run_sttus_name, wkf_job_id) VALUES (%s, 'WAITING', 1001)", run_id)
    for _ in range(2):
        world.dispatch()
    assert [world.status(row) for row in (good, 0, -5, -(2**63))] == ["SCHEDULED", "FAILED", "FAILED", "FAILED"]


def test_a_row_that_cannot_be_read_stops_no_other(world: HostileWorld) -> None:
    _view(world, wkf_job_id=f"CASE WHEN file_name = 'bad' THEN 1 / (run_id - run_id) ELSE {JOB} END")
    first, bad, last = world.add(), world.add(file_name="bad"), world.add()
    report = world.dispatch()
    assert [world.status(row) for row in (first, last)] == ["SCHEDULED", "SCHEDULED"]
    assert world.status(bad) == "FAILED"
    assert any("division by zero" in row.reason for row in report.rows)


def test_a_view_that_cannot_be_read_at_all_is_named(world: HostileWorld) -> None:
    _view(world)
    world.sql("CREATE VIEW broken AS SELECT * FROM mm_run_wait_vw WHERE 1 / (run_id - run_id) = 1")
    world.add()
    with pytest.raises(ConfigurationError, match=r"public\.broken.*division by zero"):
        world.dispatch(wait_view="broken")


def test_a_view_that_reads_what_we_may_not_is_named(world: HostileWorld) -> None:
    world.sql("CREATE VIEW blind WITH (security_invoker = true) AS SELECT * FROM mm_run_wait_vw")
    world.sql("DO $$ BEGIN CREATE ROLE blind; EXCEPTION WHEN duplicate_object THEN NULL; END $$")
    world.sql("GRANT USAGE ON SCHEMA process_manager TO blind; GRANT SELECT ON blind, mm_run_plc TO blind")
    world.sql("GRANT ALL ON ALL TABLES IN SCHEMA process_manager TO blind")
    with pytest.raises(ConfigurationError, match=r"lacks a privilege.*mm_run_wait_vw"):
        world.dispatch(wait_view="blind", postgres_url=make_dsn(world.database_url, options="-c role=blind"))


@pytest.mark.parametrize(
    "make",
    [
        "CREATE MATERIALIZED VIEW other AS SELECT * FROM mm_run_wait_vw",
        "CREATE TABLE other AS SELECT * FROM mm_run_wait_vw",
        "CREATE VIEW other AS SELECT DISTINCT * FROM mm_run_wait_vw LEFT JOIN mm_wkf_lkp USING (wkf_job_id)",
        "CREATE VIEW other AS SELECT *, 'WAITING'::text AS run_sttus_name FROM mm_run_wait_vw",
        "CREATE VIEW other AS SELECT * FROM mm_run_wait_vw UNION ALL SELECT NULL, NULL, NULL, NULL, NULL",
    ],
)
def test_a_relation_of_any_kind_can_stand_for_the_view(world: HostileWorld, make: str) -> None:
    row = world.add()
    world.sql(make)
    for _ in range(2):
        world.dispatch(wait_view="other")
    assert (world.status(row), world.started(row)) == ("SCHEDULED", 1)


def test_a_view_without_columns_is_said(world: HostileWorld) -> None:
    world.sql("CREATE VIEW empty AS SELECT")
    with pytest.raises(ConfigurationError, match=r"public\.empty has no column .*; it has: none"):
        world.dispatch(wait_view="empty")


def test_a_join_that_shows_a_row_twice_refuses_only_that_row(world: HostileWorld) -> None:
    good, twice = world.add(), world.add()
    world.sql(
        "CREATE VIEW doubled AS SELECT * FROM mm_run_wait_vw UNION ALL SELECT * FROM mm_run_wait_vw WHERE run_id = 2"
    )
    assert twice == 2
    world.dispatch(wait_view="doubled")
    assert (world.status(good), world.status(twice), world.started(twice)) == ("SCHEDULED", "FAILED", 0)


def test_an_order_of_any_type(world: HostileWorld) -> None:
    values = {"text": "'x'", "time": "'24:00'", "interval": "'170000000 years'", "date": "'infinity'",
              "uuid": "gen_random_uuid()", "boolean": "true", "numeric": "'NaN'", "text[]": "'{}'"}  # fmt: skip
    for number, (type_, value) in enumerate(values.items()):
        world.sql(f"ALTER TABLE mm_run_plc ADD placed{number} {type_} DEFAULT {value}")
        row = world.add()
        world.dispatch(column_order=f"placed{number}")
        assert (type_, world.status(row)) == (type_, "SCHEDULED")


def test_an_order_that_has_none_is_named(world: HostileWorld) -> None:
    world.sql("ALTER TABLE mm_run_plc ADD placed json")
    with pytest.raises(ConfigurationError, match="PM_COLUMN_ORDER"):
        world.dispatch(column_order="placed")


@pytest.fixture(params=["LATIN1", "SQL_ASCII", "EUC_JP"])
def other_encoding(
    request: pytest.FixtureRequest, postgres: EmbeddedPostgres, world: HostileWorld
) -> Iterator[HostileWorld]:
    """A world whose database is not in UTF-8."""
    name = f"in_{request.param.lower()}"
    make = sql.SQL("CREATE DATABASE {} TEMPLATE template0 ENCODING {} LC_COLLATE 'C' LC_CTYPE 'C'")
    with closing(psycopg2.connect(world.database_url)) as connection, connection.cursor() as cursor:
        connection.autocommit = True
        cursor.execute(make.format(sql.Identifier(name), sql.Literal(request.param)))
    url = make_dsn(world.database_url, dbname=name)
    made = HostileWorld(url, world.workspace)
    made.sql(files("pm_dagster.sandbox").joinpath("control_schema.sql").read_text())
    initialise(Settings(postgres_url=url))
    yield made
    postgres.drop_database(name)


def test_a_database_in_another_encoding_takes_any_message(other_encoding: HostileWorld) -> None:
    world = other_encoding
    bad, good = world.add(job_id=UNKNOWN_JOB), world.add()
    body = json.dumps({"error_code": "INVALID_PARAMETER_VALUE", "message": "納品 🚚 ä no"})
    world.workspace.faults.add("run-now", "status", status=400, body=body, match=str(UNKNOWN_JOB))
    world.dispatch()
    assert (world.status(bad), world.status(good)) == ("FAILED", "SCHEDULED")
    (reason,) = world.sql("SELECT state_msg FROM mm_run_plc WHERE run_id = %s", bad)[0]
    assert reason.endswith(" no")


@pytest.mark.parametrize("other_encoding", ["SQL_ASCII"], indirect=True)
def test_bytes_that_are_no_text_stop_no_other_row(other_encoding: HostileWorld) -> None:
    world = other_encoding
    first, bad, last = world.add(), world.add(), world.add()
    world.sql("UPDATE mm_run_plc SET file_name = E'\\xff\\xfe' WHERE run_id = %s", bad)
    world.dispatch()
    assert [world.status(row) for row in (first, bad, last)] == ["SCHEDULED", "FAILED", "SCHEDULED"]
