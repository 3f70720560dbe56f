"""Control tables whose columns hide their type behind domains, and views in the place of the table.

A good one is written; one that cannot be written is named before anything is sent.
"""

from __future__ import annotations

import pytest

from pm_dagster.errors import ConfigurationError
from pm_dagster_tests.hostile.deployment import UNKNOWN_JOB, HostileDeployment

_VIEW = """
CREATE VIEW mm_run_wait_vw AS SELECT run_id, cntrt_id, file_name, wkf_job_id, wkf_job_run_id FROM {table}
WHERE run_sttus_name::text = 'WAITING'
"""


def retype(deployment: HostileDeployment, column: str, type_: str, *before: str) -> None:
    """Give a column of the control table another type, after these statements that make it."""
    for statement in before:
        deployment.sql(statement)
    deployment.sql("DROP VIEW mm_run_wait_vw; DROP INDEX IF EXISTS mm_run_plc_waiting_ix")
    deployment.sql(f"ALTER TABLE mm_run_plc ALTER {column} DROP DEFAULT")
    deployment.sql(f"ALTER TABLE mm_run_plc ALTER {column} TYPE {type_} USING {column}::text::{type_}")
    deployment.sql(_VIEW.format(table="mm_run_plc"))


_ENUM = "CREATE TYPE phase AS ENUM ('WAITING', 'SCHEDULED', 'FAILED', 'SUCCESS')"
_POOR_ENUM = "CREATE TYPE phase AS ENUM ('WAITING', 'RUNNING')"

GOOD: list[tuple[str, str, tuple[str, ...]]] = [
    ("wkf_job_run_id", "d", ("CREATE DOMAIN d AS bigint",)),
    ("wkf_job_run_id", "e", ("CREATE DOMAIN d AS numeric(20, 0)", "CREATE DOMAIN e AS d")),
    ("wkf_job_run_id", "numeric", ()),
    ("wkf_job_run_id", "numeric(18, 2)", ()),
    ("wkf_job_run_id", "d", ("CREATE DOMAIN d AS varchar(16)",)),
    ("wkf_job_run_id", "char(20)", ()),
    ("wkf_job_run_id", "name", ()),
    ("wkf_job_run_id", "d", ("CREATE DOMAIN d AS text CHECK (VALUE ~ '^[0-9]+$')",)),
    ("run_sttus_name", "phase", (_ENUM,)),
    ("run_sttus_name", "e", (_ENUM, "CREATE DOMAIN d AS phase", "CREATE DOMAIN e AS d NOT NULL")),
    ("run_sttus_name", "d", ("CREATE DOMAIN d AS varchar(9)",)),
    ("run_sttus_name", "char(12)", ()),
    ("run_sttus_name", "name", ()),
    ("run_sttus_name", "d", ("CREATE DOMAIN d AS text CHECK (VALUE IN ('WAITING', 'SCHEDULED', 'FAILED'))",)),
    ("run_page_url", "d", ("CREATE DOMAIN d AS text",)),
    ("run_page_url", "e", ("CREATE DOMAIN d AS varchar(400)", "CREATE DOMAIN e AS d CHECK (VALUE LIKE 'http%')")),
    ("msg", "e", ("CREATE DOMAIN d AS varchar(10)", "CREATE DOMAIN e AS d")),
    ("msg", "name", ()),
]


@pytest.mark.parametrize(("column", "type_", "before"), GOOD)
def test_a_good_column_is_written_whatever_its_type_is_called(
    deployment: HostileDeployment, column: str, type_: str, before: tuple[str, ...]
) -> None:
    retype(deployment, column, type_, *before)
    row, refused = deployment.add(), deployment.add(job_id=UNKNOWN_JOB)
    deployment.dispatch()
    assert (deployment.status(row).strip(), deployment.status(refused).strip()) == ("SCHEDULED", "FAILED")
    assert deployment.started(row) == 1
    (written,) = deployment.sql(
        "SELECT wkf_job_run_id::text, run_page_url::text FROM mm_run_plc WHERE run_id = %s", row
    )
    (run,) = (run for run in deployment.workspace.state.runs() if run.parameters.get("RUN_ID") == str(row))
    assert written[0].split(".")[0].strip() == str(run.run_id)
    assert written[1].endswith(str(run.run_id))


@pytest.mark.parametrize(
    ("column", "type_", "before"),
    [
        ("run_page_url", "d", ("CREATE DOMAIN d AS varchar(20)",)),
        ("run_page_url", "e", ("CREATE DOMAIN d AS char(20)", "CREATE DOMAIN e AS d")),
        ("run_page_url", "varchar(20)", ()),
    ],
)
def test_half_a_link_is_worse_than_none(
    deployment: HostileDeployment, column: str, type_: str, before: tuple[str, ...]
) -> None:
    retype(deployment, column, type_, *before)
    row = deployment.add()
    deployment.dispatch()
    assert (deployment.status(row), deployment.started(row)) == ("SCHEDULED", 1)
    assert deployment.sql("SELECT run_page_url FROM mm_run_plc") == [(None,)]


def test_a_message_that_must_be_there_is_empty_where_there_is_none(deployment: HostileDeployment) -> None:
    retype(deployment, "msg", "d", "CREATE DOMAIN d AS text DEFAULT '' NOT NULL", "UPDATE mm_run_plc SET msg = ''")
    deployment.sql("ALTER TABLE mm_run_plc ALTER msg SET DEFAULT ''")
    row, refused = deployment.add(), deployment.add(job_id=UNKNOWN_JOB)
    deployment.dispatch()
    assert (deployment.status(row), deployment.status(refused)) == ("SCHEDULED", "FAILED")


BAD: list[tuple[str, str, tuple[str, ...], str]] = [
    ("wkf_job_run_id", "numeric(5, 0)", (), "5 digits"),
    ("wkf_job_run_id", "numeric(17, 2)", (), "15 digits"),
    ("wkf_job_run_id", "d", ("CREATE DOMAIN d AS integer",), "d (a domain over integer)"),
    ("wkf_job_run_id", "e", ("CREATE DOMAIN d AS numeric(12, 0)", "CREATE DOMAIN e AS d"), "12 digits"),
    ("wkf_job_run_id", "e", ("CREATE DOMAIN d AS varchar(8)", "CREATE DOMAIN e AS d"), "character varying(8)"),
    ("run_sttus_name", "e", ("CREATE DOMAIN d AS varchar(8)", "CREATE DOMAIN e AS d"), "holds 8 characters"),
    ("run_sttus_name", "e", (_POOR_ENUM, "CREATE DOMAIN d AS phase", "CREATE DOMAIN e AS d"), "WAITING, RUNNING"),
    ("run_page_url", "d", ("CREATE DOMAIN d AS text[]",), "d (a domain over text[])"),
    ("msg", "e", ("CREATE DOMAIN d AS json", "CREATE DOMAIN e AS d"), "e (a domain over json)"),
]


@pytest.mark.parametrize(("column", "type_", "before", "named"), BAD)
def test_a_column_that_cannot_be_written_is_named_before_anything_is_sent(
    deployment: HostileDeployment, column: str, type_: str, before: tuple[str, ...], named: str
) -> None:
    retype(deployment, column, type_, *before)
    row = deployment.add()
    with pytest.raises(ConfigurationError) as caught:
        deployment.dispatch()
    assert column in str(caught.value)
    assert named in str(caught.value)
    assert (deployment.status(row), deployment.started(row)) == ("WAITING", 0)


_ALL = "SELECT run_id, wkf_job_run_id, cntrt_id, file_name, rgstr_file_time, wkf_job_id, state_msg, msg"
_INSTEAD = """
CREATE FUNCTION instead() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} END $$;
CREATE TRIGGER instead INSTEAD OF UPDATE ON shown FOR EACH ROW EXECUTE FUNCTION instead()
"""
_TAKES = "UPDATE mm_run_plc SET run_sttus_name = NEW.run_sttus_name WHERE run_id = OLD.run_id; RETURN NEW;"


_CASE = f"CREATE VIEW shown AS {_ALL}, CASE WHEN true THEN run_sttus_name END AS run_sttus_name FROM mm_run_plc"
_RULE = """
CREATE RULE instead AS ON UPDATE TO shown
DO INSTEAD UPDATE mm_run_plc SET run_sttus_name = NEW.run_sttus_name WHERE run_id = OLD.run_id
"""


@pytest.mark.parametrize(
    "statements",
    [
        ("CREATE VIEW shown AS SELECT * FROM mm_run_plc",),
        ("CREATE VIEW shown AS SELECT * FROM mm_run_plc WHERE run_id > 0 WITH CHECK OPTION",),
        (f"CREATE VIEW shown AS {_ALL}, run_sttus_name, upper(run_page_url) AS run_page_url FROM mm_run_plc",),
        (
            f"CREATE VIEW shown AS {_ALL}, upper(run_sttus_name) AS run_sttus_name FROM mm_run_plc",
            _INSTEAD.format(body=_TAKES),
        ),
        (_CASE, _RULE),
        ("CREATE VIEW under AS SELECT * FROM mm_run_plc", "CREATE VIEW shown AS SELECT * FROM under"),
    ],
    ids=["simple", "check option", "computed link", "INSTEAD OF trigger", "rule", "view of a view"],
)
def test_a_view_that_takes_the_write_can_stand_for_the_table(
    deployment: HostileDeployment, statements: tuple[str, ...]
) -> None:
    for statement in statements:
        deployment.sql(statement)
    row = deployment.add()
    for _ in range(2):
        deployment.dispatch(run_table="shown")
    assert (deployment.status(row), deployment.started(row)) == ("SCHEDULED", 1)


_COMPUTED = f"""
CREATE VIEW shown AS {_ALL}, run_page_url,
CASE WHEN wkf_job_run_id IS NULL THEN 'WAITING' ELSE 'DONE' END AS run_sttus_name FROM mm_run_plc
"""
_COMPUTED_RUN = """
CREATE VIEW shown AS
SELECT run_id, wkf_job_run_id + 0 AS wkf_job_run_id, run_sttus_name, rgstr_file_time FROM mm_run_plc
"""
_FOREIGN = """
CREATE FOREIGN DATA WRAPPER nowhere; CREATE SERVER far FOREIGN DATA WRAPPER nowhere;
CREATE FOREIGN TABLE shown (
    run_id bigint, wkf_job_run_id bigint, run_sttus_name text, rgstr_file_time timestamp) SERVER far
"""


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (_COMPUTED, "column run_sttus_name (PM_COLUMN_STATUS) of table public.shown takes no UPDATE"),
        (_COMPUTED_RUN, "column wkf_job_run_id of table public.shown takes no UPDATE"),
        ("CREATE VIEW shown AS SELECT DISTINCT * FROM mm_run_plc", "a view that takes no UPDATE"),
        ("CREATE VIEW shown AS SELECT * FROM mm_run_plc LIMIT 10", "a view that takes no UPDATE"),
        ("CREATE VIEW shown AS SELECT * FROM mm_run_plc UNION ALL SELECT * FROM mm_run_plc WHERE false", "takes no"),
        ("CREATE MATERIALIZED VIEW shown AS SELECT * FROM mm_run_plc", "a materialized view that takes no UPDATE"),
        (_FOREIGN, "foreign"),
    ],
    ids=["computed status", "computed run", "distinct", "limit", "union", "materialized", "foreign"],
)
def test_a_view_that_does_not_take_the_write_is_named_before_anything_is_sent(
    deployment: HostileDeployment, make: str, named: str
) -> None:
    deployment.sql(make)
    row = deployment.add()
    with pytest.raises(ConfigurationError) as caught:
        deployment.dispatch(run_table="shown")
    assert named in str(caught.value)
    assert deployment.started(row) == 0


_TRIES = "CREATE VIEW shown AS SELECT * FROM mm_run_plc"


@pytest.mark.parametrize(
    "statements",
    [
        (_TRIES, _INSTEAD.format(body="RETURN NEW;")),
        (_CASE, _INSTEAD.format(body="RETURN NULL;")),
        (_TRIES, "CREATE RULE instead AS ON UPDATE TO shown DO INSTEAD NOTHING"),
        ("CREATE VIEW shown AS SELECT * FROM mm_run_plc WHERE run_sttus_name = 'WAITING' WITH CHECK OPTION",),
        (_COMPUTED, _INSTEAD.format(body=_TAKES)),
    ],
    ids=["trigger does nothing", "trigger drops it", "rule drops it", "check option", "computed in spite of a trigger"],
)
def test_a_view_that_takes_the_write_and_does_not_keep_it_starts_nothing(
    deployment: HostileDeployment, statements: tuple[str, ...]
) -> None:
    for statement in statements:
        deployment.sql(statement)
    row = deployment.add()
    for _ in range(2):
        deployment.dispatch(run_table="shown")
    assert deployment.started(row) == 0
    assert any("deferred: not started: public.shown" in event for event in deployment.events(row))
