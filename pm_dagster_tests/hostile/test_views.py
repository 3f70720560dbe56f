"""Views with other types, with rows that cannot be read, and texts that nobody expects: one row stops no other."""

from __future__ import annotations

import pytest
from psycopg2 import sql
from psycopg2.extensions import make_dsn

from pm_dagster.errors import ConfigurationError
from pm_dagster_tests.hostile.deployment import JOB, HostileDeployment

_VIEW = """
DO $$ BEGIN CREATE TYPE pair AS (a bigint, b text); EXCEPTION WHEN duplicate_object THEN NULL; END $$;
DROP VIEW IF EXISTS mm_run_wait_vw CASCADE;
CREATE VIEW mm_run_wait_vw AS SELECT run_id, {cntrt_id} AS cntrt_id, {file_name} AS file_name,
    {wkf_job_id} AS wkf_job_id, {wkf_job_run_id} AS wkf_job_run_id FROM mm_run_plc WHERE run_sttus_name = 'WAITING'
"""
_SAME = {name: name for name in ("cntrt_id", "file_name", "wkf_job_id", "wkf_job_run_id")}


def _view(deployment: HostileDeployment, **columns: str) -> None:
    deployment.sql(_VIEW.format(**{**_SAME, **columns}))


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


def test_parameters_of_all_types_arrive_as_the_server_writes_them(deployment: HostileDeployment) -> None:
    columns = ", ".join(f"{value} AS c{number}" for number, (value, _) in enumerate(EXOTIC))
    _view(deployment)
    deployment.sql(sql.SQL("CREATE VIEW exotic AS SELECT *, {} FROM mm_run_wait_vw").format(sql.SQL(columns)))
    row = deployment.add()
    parameters = (("RUN_ID", "run_id"), *((f"P{number}", f"c{number}") for number in range(len(EXOTIC))))
    deployment.dispatch(wait_view="exotic", job_parameters=parameters)
    sent = deployment.sent(row)
    assert [sent[f"P{number}"] for number in range(len(EXOTIC))] == [text for _, text in EXOTIC]
    assert deployment.status(row) == "SCHEDULED"


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
def test_an_id_of_any_type_is_unchanged_or_the_row_refused(deployment: HostileDeployment, column: str) -> None:
    for value, job in IDS:
        run = deployment.workspace.state.add_run(JOB).run_id
        _view(deployment, **{column: value.replace("wkf_job_id", column)})
        row = deployment.add(run=run if column == "wkf_job_run_id" else None)
        deployment.dispatch()
        good = bool(job) or (column == "wkf_job_run_id" and value.startswith("NULL"))
        assert (value, deployment.status(row)) == (value, "SCHEDULED" if good else "FAILED")
        assert deployment.started(row) == good


@pytest.mark.parametrize("job", [1, 2**53 + 1, 2**63 - 1])
def test_ids_at_the_edges_keep_every_digit(deployment: HostileDeployment, job: int) -> None:
    deployment.workspace.state.add_job("edge", job_id=job, seconds=None)
    deployment.sql(
        "INSERT INTO mm_run_plc (run_id, run_sttus_name, wkf_job_id) VALUES (%s, 'WAITING', %s)", 2**63 - 1, job
    )
    deployment.dispatch()
    assert (deployment.status(2**63 - 1), deployment.started(2**63 - 1)) == ("SCHEDULED", 1)


def test_run_ids_that_no_row_should_have(deployment: HostileDeployment) -> None:
    good = deployment.add()
    for run_id in (0, -5, -(2**63)):
        deployment.sql(
            "INSERT INTO mm_run_plc (run_id, run_sttus_name, wkf_job_id) VALUES (%s, 'WAITING', 1001)", run_id
        )
    for _ in range(2):
        deployment.dispatch()
    assert [deployment.status(row) for row in (good, 0, -5, -(2**63))] == ["SCHEDULED", "FAILED", "FAILED", "FAILED"]


def test_a_row_that_cannot_be_read_stops_no_other(deployment: HostileDeployment) -> None:
    _view(deployment, wkf_job_id=f"CASE WHEN file_name = 'bad' THEN 1 / (run_id - run_id) ELSE {JOB} END")
    first, bad, last = deployment.add(), deployment.add(file_name="bad"), deployment.add()
    report = deployment.dispatch()
    assert [deployment.status(row) for row in (first, last)] == ["SCHEDULED", "SCHEDULED"]
    assert deployment.status(bad) == "FAILED"
    assert any("division by zero" in row.reason for row in report.rows)


def test_a_view_that_cannot_be_read_at_all_is_named(deployment: HostileDeployment) -> None:
    _view(deployment)
    deployment.sql("CREATE VIEW broken AS SELECT * FROM mm_run_wait_vw WHERE 1 / (run_id - run_id) = 1")
    deployment.add()
    with pytest.raises(ConfigurationError, match=r"public\.broken.*division by zero"):
        deployment.dispatch(wait_view="broken")


def test_a_view_that_reads_what_we_may_not_is_named(deployment: HostileDeployment) -> None:
    deployment.sql("CREATE VIEW blind WITH (security_invoker = true) AS SELECT * FROM mm_run_wait_vw")
    deployment.sql("DO $$ BEGIN CREATE ROLE blind; EXCEPTION WHEN duplicate_object THEN NULL; END $$")
    deployment.sql("GRANT USAGE ON SCHEMA process_manager TO blind; GRANT SELECT ON blind, mm_run_plc TO blind")
    deployment.sql("GRANT UPDATE ON mm_run_plc TO blind; GRANT ALL ON ALL TABLES IN SCHEMA process_manager TO blind")
    deployment.sql("GRANT ALL ON ALL SEQUENCES IN SCHEMA process_manager TO blind")
    with pytest.raises(ConfigurationError, match=r"lacks a privilege.*mm_run_wait_vw"):
        deployment.dispatch(wait_view="blind", postgres_url=make_dsn(deployment.database_url, options="-c role=blind"))


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
def test_a_relation_of_any_kind_can_stand_for_the_view(deployment: HostileDeployment, make: str) -> None:
    row = deployment.add()
    deployment.sql(make)
    for _ in range(2):
        deployment.dispatch(wait_view="other")
    assert (deployment.status(row), deployment.started(row)) == ("SCHEDULED", 1)


def test_a_view_without_columns_is_said(deployment: HostileDeployment) -> None:
    deployment.sql("CREATE VIEW empty AS SELECT")
    with pytest.raises(ConfigurationError, match=r"public\.empty has no column .*; it has: none"):
        deployment.dispatch(wait_view="empty")


def test_a_join_that_shows_a_row_twice_refuses_only_that_row(deployment: HostileDeployment) -> None:
    good, twice = deployment.add(), deployment.add()
    deployment.sql(
        "CREATE VIEW doubled AS SELECT * FROM mm_run_wait_vw UNION ALL SELECT * FROM mm_run_wait_vw WHERE run_id = 2"
    )
    assert twice == 2
    deployment.dispatch(wait_view="doubled")
    assert (deployment.status(good), deployment.status(twice), deployment.started(twice)) == ("SCHEDULED", "FAILED", 0)


def test_an_order_of_any_type(deployment: HostileDeployment) -> None:
    values = {"text": "'x'", "time": "'24:00'", "interval": "'170000000 years'", "date": "'infinity'",
              "uuid": "gen_random_uuid()", "boolean": "true", "numeric": "'NaN'", "text[]": "'{}'"}  # fmt: skip
    for number, (type_, value) in enumerate(values.items()):
        deployment.sql(f"ALTER TABLE mm_run_plc ADD placed{number} {type_} DEFAULT {value}")
        row = deployment.add()
        deployment.dispatch(column_order=f"placed{number}")
        assert (type_, deployment.status(row)) == (type_, "SCHEDULED")


def test_an_order_that_has_none_is_named(deployment: HostileDeployment) -> None:
    deployment.sql("ALTER TABLE mm_run_plc ADD placed json")
    with pytest.raises(ConfigurationError, match="PM_COLUMN_ORDER"):
        deployment.dispatch(column_order="placed")
