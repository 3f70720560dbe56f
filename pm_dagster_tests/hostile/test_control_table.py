"""Control tables that refuse, change or hide what is written: one row stops no other, and nothing runs twice."""

from __future__ import annotations

import json
from typing import Any

import pytest
from psycopg2.extensions import make_dsn

from pm_dagster.errors import ConfigurationError
from pm_dagster_tests.cli.shell import Shell
from pm_dagster_tests.hostile.deployment import UNKNOWN_JOB, HostileDeployment

_TRIGGER = """
CREATE FUNCTION hostile() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} END $$;
CREATE TRIGGER hostile BEFORE UPDATE ON mm_run_plc FOR EACH ROW EXECUTE FUNCTION hostile()
"""


def _trigger(deployment: HostileDeployment, body: str) -> None:
    deployment.sql(_TRIGGER.format(body=body))


def test_a_row_whose_write_the_owner_refuses_stops_no_other(deployment: HostileDeployment) -> None:
    first, bad, last = (deployment.add() for _ in range(3))
    _trigger(deployment, f"IF OLD.run_id = {bad} THEN RAISE EXCEPTION 'not this one'; END IF; RETURN NEW;")

    report = deployment.dispatch()

    assert [deployment.status(row) for row in (first, bad, last)] == ["SCHEDULED", "WAITING", "SCHEDULED"]
    assert report.scheduled == 2
    assert any("not this one" in event for event in deployment.events(bad))
    assert any("not this one" in row.reason for row in report.rows if row.run_id == bad)
    deployment.dispatch()
    assert deployment.started(bad) == 0
    deployment.sql("DROP TRIGGER hostile ON mm_run_plc")
    deployment.dispatch()
    assert (deployment.status(bad), deployment.started(bad)) == ("SCHEDULED", 1)


@pytest.mark.parametrize(
    "body",
    [
        "NEW.run_sttus_name := OLD.run_sttus_name; RETURN NEW;",
        "RETURN NULL;",
        "RETURN OLD;",
    ],
    ids=["sets the status back", "drops the write", "undoes the write"],
)
def test_a_row_that_stays_waiting_though_it_was_written_is_not_run_again(
    deployment: HostileDeployment, body: str
) -> None:
    row = deployment.add()
    _trigger(deployment, body)
    for _ in range(3):
        deployment.dispatch()
    assert (deployment.status(row), deployment.started(row)) == ("WAITING", 0)
    assert any("still says WAITING" in event for event in deployment.events(row))
    deployment.sql("DROP TRIGGER hostile ON mm_run_plc")
    deployment.dispatch()
    assert (deployment.status(row), deployment.started(row)) == ("SCHEDULED", 1)


@pytest.mark.parametrize("body", ["RAISE EXCEPTION 'not now';", "RETURN NULL;", "RETURN OLD;"])
def test_a_trigger_that_comes_after_the_rehearsal_leaves_the_run_open_and_runs_it_once(
    deployment: HostileDeployment, body: str
) -> None:
    """Rehearsed or not, an entry whose row is not written stays, and is closed when it can be."""
    row = deployment.add()
    _trigger(deployment, body)
    for _ in range(3):
        deployment.dispatch(rehearse=False)
    assert (deployment.status(row), deployment.started(row)) == ("WAITING", 1)
    assert any(event.startswith("not closed") for event in deployment.events(row))
    deployment.sql("DROP TRIGGER hostile ON mm_run_plc")
    deployment.dispatch()
    assert (deployment.status(row), deployment.started(row)) == ("SCHEDULED", 1)


_REFUSE_SCHEDULED = [
    "ALTER TABLE mm_run_plc ADD CHECK (run_sttus_name <> 'SCHEDULED')",
    "CREATE RULE hostile AS ON UPDATE TO mm_run_plc DO INSTEAD NOTHING",
    (
        "CREATE TABLE words (word varchar PRIMARY KEY); INSERT INTO words VALUES ('WAITING'), ('FAILED');"
        "ALTER TABLE mm_run_plc ADD FOREIGN KEY (run_sttus_name) REFERENCES words DEFERRABLE INITIALLY DEFERRED"
    ),
    (
        "CREATE FUNCTION hostile() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'closed for today'; END $$;"
        "CREATE CONSTRAINT TRIGGER hostile AFTER UPDATE ON mm_run_plc DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION hostile()"
    ),
    (
        "CREATE FUNCTION hostile() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " UPDATE mm_run_plc SET run_sttus_name = 'WAITING' WHERE run_id = NEW.run_id; RETURN NULL; END $$;"
        "CREATE TRIGGER hostile AFTER UPDATE ON mm_run_plc FOR EACH ROW"
        " WHEN (NEW.run_sttus_name = 'SCHEDULED') EXECUTE FUNCTION hostile()"
    ),
]


@pytest.mark.parametrize("statements", _REFUSE_SCHEDULED, ids=["check", "rule", "key", "constraint", "set back"])
def test_what_cannot_be_closed_is_not_started_and_doctor_says_so_before(
    deployment: HostileDeployment, statements: str
) -> None:
    rows = [deployment.add() for _ in range(3)]
    deployment.sql(statements)
    checks = {check["check"]: check for check in _doctor(deployment)}
    assert not checks["closing"]["ok"]
    assert "3 of 3 rows cannot be set to SCHEDULED (PM_STATUS_SCHEDULED)" in checks["closing"]["found"]
    assert set(deployment.sql("SELECT run_sttus_name FROM mm_run_plc")) == {("WAITING",)}
    report = deployment.dispatch()
    assert [(deployment.status(row), deployment.started(row)) for row in rows] == [("WAITING", 0)] * 3
    assert [row.outcome.value for row in report.rows] == ["deferred"] * 3
    assert all(
        any("deferred: not started: public.mm_run_plc" in event for event in deployment.events(row)) for row in rows
    )


def _doctor(deployment: HostileDeployment) -> list[dict[str, Any]]:
    shell = Shell(deployment.database_url, deployment.workspace)
    found: list[dict[str, Any]] = json.loads(shell.pm("doctor", "--json").stdout)["checks"]
    return found


def test_doctor_names_a_status_that_the_table_lacks_and_a_good_table_is_said_to_be_one(
    deployment: HostileDeployment,
) -> None:
    def closing() -> tuple[bool, str]:
        (check,) = [check for check in _doctor(deployment) if check["check"] == "closing"]
        return check["ok"], check["found"]

    assert closing()[0]
    deployment.add()
    ok, found = closing()
    assert ok
    assert "as tried with 1 rows and undone" in found
    deployment.sql("ALTER TABLE mm_run_plc ADD CHECK (run_sttus_name <> 'FAILED')")
    assert closing() == (False, closing()[1])
    assert "cannot be set to FAILED (PM_STATUS_FAILED)" in closing()[1]
    deployment.sql("CREATE TYPE phases AS ENUM ('WAITING', 'SCHEDULED')")
    deployment.sql("ALTER TABLE mm_run_plc DROP CONSTRAINT mm_run_plc_run_sttus_name_check")
    _retype_status(deployment, "phases")
    assert "does not know 'FAILED' (PM_STATUS_FAILED)" in closing()[1]


def test_the_rehearsal_leaves_nothing_behind(deployment: HostileDeployment) -> None:
    """Neither in the row nor in what the owner's triggers write."""
    deployment.sql("CREATE TABLE audit (run_id bigint, was text, run bigint)")
    _trigger(deployment, "INSERT INTO audit VALUES (NEW.run_id, NEW.run_sttus_name, NEW.wkf_job_run_id); RETURN NEW;")
    row = deployment.add()
    _doctor(deployment)
    assert deployment.sql("SELECT * FROM audit") == []
    deployment.dispatch()
    (run,) = (run.run_id for run in deployment.workspace.state.runs())
    assert deployment.sql("SELECT * FROM audit") == [(row, "SCHEDULED", run)]


def test_a_column_that_we_may_not_write_is_named_before_anything_is_sent(deployment: HostileDeployment) -> None:
    row = deployment.add()
    deployment.sql("DO $$ BEGIN CREATE ROLE clerk; EXCEPTION WHEN duplicate_object THEN NULL; END $$")
    deployment.sql("GRANT SELECT ON ALL TABLES IN SCHEMA public, process_manager TO clerk")
    deployment.sql("GRANT INSERT, UPDATE ON ALL TABLES IN SCHEMA process_manager TO clerk")
    deployment.sql("GRANT USAGE ON ALL SEQUENCES IN SCHEMA process_manager TO clerk")
    deployment.sql("GRANT USAGE ON SCHEMA process_manager TO clerk")
    deployment.sql("GRANT UPDATE (run_sttus_name, wkf_job_run_id, state_msg) ON mm_run_plc TO clerk")
    url = make_dsn(deployment.database_url, options="-c role=clerk")
    with pytest.raises(ConfigurationError, match=r"lacks a privilege: UPDATE \(run_page_url, msg\) on public"):
        deployment.dispatch(postgres_url=url)
    assert (deployment.status(row), deployment.started(row)) == ("WAITING", 0)


def test_a_trigger_with_a_status_of_its_own_has_its_way(deployment: HostileDeployment) -> None:
    row = deployment.add()
    _trigger(deployment, "NEW.run_sttus_name := 'TAKEN'; RETURN NEW;")
    for _ in range(2):
        deployment.dispatch()
    assert (deployment.status(row), deployment.started(row)) == ("TAKEN", 1)


def _retype_status(deployment: HostileDeployment, type_: str) -> None:
    deployment.sql("DROP VIEW mm_run_wait_vw; DROP INDEX mm_run_plc_waiting_ix")
    deployment.sql(f"ALTER TABLE mm_run_plc ALTER run_sttus_name TYPE {type_} USING run_sttus_name::{type_}")
    deployment.sql(
        "CREATE VIEW mm_run_wait_vw AS SELECT run_id, cntrt_id, file_name, wkf_job_id, wkf_job_run_id FROM mm_run_plc"
        " WHERE run_sttus_name = 'WAITING'"
    )


#: A type whose words are equal in whatever letters, as citext is, which the embedded server was built without.
_NOCASE = """
CREATE TYPE nocase;
CREATE FUNCTION nocase_in(cstring) RETURNS nocase AS 'textin' LANGUAGE internal IMMUTABLE STRICT;
CREATE FUNCTION nocase_out(nocase) RETURNS cstring AS 'textout' LANGUAGE internal IMMUTABLE STRICT;
CREATE TYPE nocase (INPUT = nocase_in, OUTPUT = nocase_out, LIKE = text, CATEGORY = 'S');
CREATE CAST (nocase AS text) WITHOUT FUNCTION AS ASSIGNMENT;
CREATE CAST (varchar AS nocase) WITH INOUT AS ASSIGNMENT;
CREATE FUNCTION alike(nocase, nocase) RETURNS boolean LANGUAGE sql IMMUTABLE
    AS $$ SELECT lower($1::text) = lower($2::text) $$;
CREATE OPERATOR = (LEFTARG = nocase, RIGHTARG = nocase, FUNCTION = alike);
"""


def test_a_status_that_only_the_table_takes_for_waiting_runs_once(deployment: HostileDeployment) -> None:
    deployment.sql(_NOCASE)
    _retype_status(deployment, "nocase")
    row = deployment.add()
    deployment.sql("UPDATE mm_run_plc SET run_sttus_name = 'Waiting'")
    for _ in range(2):
        deployment.dispatch()
    assert (deployment.status(row), deployment.started(row)) == ("SCHEDULED", 1)


def test_an_enumeration_that_lacks_a_status_stops_only_the_rows_that_need_it(deployment: HostileDeployment) -> None:
    deployment.sql("CREATE TYPE phases AS ENUM ('WAITING', 'SCHEDULED')")
    _retype_status(deployment, "phases")
    good, refused, also_good = deployment.add(), deployment.add(job_id=UNKNOWN_JOB), deployment.add()
    malformed = deployment.add(job_id=None)
    for _ in range(2):
        deployment.dispatch()
    assert [deployment.status(row) for row in (good, also_good)] == ["SCHEDULED", "SCHEDULED"]
    assert [deployment.status(row) for row in (refused, malformed)] == ["WAITING", "WAITING"]
    assert any("phases" in event for event in deployment.events(refused))
    assert any("phases" in event for event in deployment.events(malformed))


def test_a_check_constraint_stops_only_the_rows_that_break_it(deployment: HostileDeployment) -> None:
    deployment.sql("ALTER TABLE mm_run_plc ADD CHECK (run_sttus_name <> 'FAILED')")
    good, refused = deployment.add(), deployment.add(job_id=UNKNOWN_JOB)
    for _ in range(2):
        deployment.dispatch()
    assert (deployment.status(good), deployment.status(refused)) == ("SCHEDULED", "WAITING")
    assert any("check constraint" in event for event in deployment.events(refused))


def test_a_table_without_a_key_that_holds_a_row_twice(deployment: HostileDeployment) -> None:
    deployment.sql("ALTER TABLE mm_run_plc DROP CONSTRAINT mm_run_plc_pkey")
    good, twice = deployment.add(), deployment.add()
    deployment.sql("INSERT INTO mm_run_plc SELECT * FROM mm_run_plc WHERE run_id = %s", twice)
    deployment.dispatch()
    assert deployment.status(good) == "SCHEDULED"
    assert deployment.started(twice) == 0
    assert (
        deployment.sql("SELECT run_sttus_name, state_msg FROM mm_run_plc WHERE run_id = %s", twice)
        == [("FAILED", f"run_id {twice} stands 4 times in the view; it must be unique")] * 2
    )


def test_a_table_without_a_key_that_still_holds_an_older_row_of_the_same_id(deployment: HostileDeployment) -> None:
    deployment.sql("ALTER TABLE mm_run_plc DROP CONSTRAINT mm_run_plc_pkey")
    row, good = deployment.add(), deployment.add()
    deployment.sql("INSERT INTO mm_run_plc (run_id, run_sttus_name) VALUES (%s, 'SUCCESS')", row)
    for _ in range(2):
        deployment.dispatch()
    assert deployment.status(good) == "SCHEDULED"
    assert deployment.started(row) == 0
    assert deployment.sql("SELECT run_sttus_name FROM mm_run_plc WHERE run_id = %s ORDER BY 1", row) == [
        ("FAILED",),
        ("SUCCESS",),
    ]


def test_a_partitioned_table_whose_rows_move_with_their_status(deployment: HostileDeployment) -> None:
    deployment.sql("DROP VIEW mm_run_wait_vw; ALTER TABLE mm_run_plc RENAME TO old")
    deployment.sql("CREATE TABLE mm_run_plc (LIKE old INCLUDING DEFAULTS) PARTITION BY LIST (run_sttus_name)")
    deployment.sql("CREATE SEQUENCE ids; ALTER TABLE mm_run_plc ALTER run_id SET DEFAULT nextval('ids')")
    deployment.sql("CREATE TABLE waits PARTITION OF mm_run_plc FOR VALUES IN ('WAITING')")
    deployment.sql("CREATE TABLE others PARTITION OF mm_run_plc DEFAULT")
    deployment.sql("CREATE VIEW mm_run_wait_vw AS SELECT * FROM mm_run_plc WHERE run_sttus_name = 'WAITING'")
    good, refused = deployment.add(), deployment.add(job_id=UNKNOWN_JOB)
    for _ in range(2):
        deployment.dispatch()
    assert (deployment.status(good), deployment.status(refused), deployment.started(good)) == ("SCHEDULED", "FAILED", 1)


def test_row_level_security_that_hides_a_row_from_updates_is_said(deployment: HostileDeployment) -> None:
    deployment.sql("ALTER TABLE mm_run_plc ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY")
    good, hidden = deployment.add(), deployment.add()
    deployment.sql("CREATE POLICY see ON mm_run_plc FOR SELECT USING (true)")
    deployment.sql(f"CREATE POLICY change ON mm_run_plc FOR UPDATE USING (run_id <> {hidden})")
    deployment.sql("DO $$ BEGIN CREATE ROLE limited; EXCEPTION WHEN duplicate_object THEN NULL; END $$")
    deployment.sql("GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA public, process_manager TO limited")
    deployment.sql("GRANT USAGE ON ALL SEQUENCES IN SCHEMA process_manager TO limited")
    deployment.sql("GRANT USAGE ON SCHEMA process_manager TO limited")
    report = deployment.dispatch(postgres_url=make_dsn(deployment.database_url, options="-c role=limited"))
    assert report.read == 2
    assert (deployment.status(good), deployment.status(hidden), deployment.started(hidden)) == (
        "SCHEDULED",
        "WAITING",
        0,
    )


@pytest.mark.parametrize(
    ("change", "settings", "named"),
    [
        ("", {"columns_message": ("state_msg", "state_msg")}, ["PM_COLUMNS_MESSAGE", "state_msg"]),
        ("", {"columns_message": ("run_sttus_name",)}, ["PM_COLUMNS_MESSAGE", "PM_COLUMN_STATUS", "run_sttus_name"]),
        ("", {"column_page_url": "run_sttus_name"}, ["PM_COLUMN_PAGE_URL", "PM_COLUMN_STATUS"]),
        ("", {"column_job_run_id": "run_id"}, ["PM_COLUMN_JOB_RUN_ID", "PM_COLUMN_RUN_ID"]),
        ("", {"column_status": "run_id"}, ["PM_COLUMN_STATUS", "PM_COLUMN_RUN_ID"]),
        (
            "ALTER TABLE mm_run_plc ADD made text GENERATED ALWAYS AS (file_name) STORED",
            {"column_status": "made"},
            ["made", "generated"],
        ),
        ("ALTER TABLE mm_run_plc ADD r uuid", {"column_page_url": "r"}, ["PM_COLUMN_PAGE_URL", "uuid"]),
        ("ALTER TABLE mm_run_plc ADD r json", {"columns_message": ("r",)}, ["PM_COLUMNS_MESSAGE", "json"]),
        ("ALTER TABLE mm_run_plc ADD r double precision", {"column_job_run_id": "r"}, ["double precision", "bigint"]),
        ("ALTER TABLE mm_run_plc ADD r varchar(8)", {"column_job_run_id": "r"}, ["PM_COLUMN_JOB_RUN_ID", "varying(8)"]),
        (
            "ALTER TABLE mm_run_plc ADD r varchar(8) DEFAULT 'WAITING'",
            {"column_status": "r"},
            ["'SCHEDULED'", "holds 8"],
        ),
        ("ALTER TABLE mm_run_plc ADD r bigint", {"column_status": "r"}, ["PM_COLUMN_STATUS", "bigint", "must be text"]),
        (
            "CREATE TYPE e AS ENUM ('WAITING', 'X'); ALTER TABLE mm_run_plc ADD r e",
            {"column_status": "r"},
            ["does not know 'SCHEDULED' (PM_STATUS_SCHEDULED)", "only: WAITING, X"],
        ),
        ("ALTER TABLE mm_run_plc ADD r text", {"column_run_id": "r"}, ["view", "has no column r"]),
    ],
)
def test_columns_that_cannot_be_written_are_named_before_anything_is_sent(
    deployment: HostileDeployment, change: str, settings: dict[str, Any], named: list[str]
) -> None:
    row = deployment.add()
    if change:
        deployment.sql(change)
    if "column_job_run_id" in settings and "r" in settings.values():
        deployment.sql(
            "CREATE OR REPLACE VIEW mm_run_wait_vw AS SELECT run_id, cntrt_id, file_name, wkf_job_id, "
            "wkf_job_run_id, r FROM mm_run_plc WHERE run_sttus_name = 'WAITING'"
        )
    with pytest.raises(ConfigurationError) as caught:
        deployment.dispatch(**settings)
    assert [words for words in named if words not in str(caught.value)] == []
    assert (deployment.status(row), deployment.started(row)) == ("WAITING", 0)


def test_a_generated_link_is_left_to_its_owner(deployment: HostileDeployment) -> None:
    deployment.sql("ALTER TABLE mm_run_plc DROP run_page_url")
    deployment.sql("ALTER TABLE mm_run_plc ADD run_page_url text GENERATED ALWAYS AS ('https://' || file_name) STORED")
    row = deployment.add()
    deployment.dispatch()
    assert deployment.status(row) == "SCHEDULED"
    assert deployment.sql("SELECT run_page_url FROM mm_run_plc") == [("https://file.csv",)]


def test_a_policy_that_forbids_what_is_written_starts_nothing(deployment: HostileDeployment) -> None:
    deployment.sql("ALTER TABLE mm_run_plc ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY")
    good, kept = deployment.add(), deployment.add()
    deployment.sql("CREATE POLICY see ON mm_run_plc FOR SELECT USING (true)")
    deployment.sql(
        "CREATE POLICY change ON mm_run_plc FOR UPDATE USING (true)"
        f" WITH CHECK (run_id <> {kept} OR run_sttus_name = 'WAITING')"
    )
    deployment.sql("DO $$ BEGIN CREATE ROLE held; EXCEPTION WHEN duplicate_object THEN NULL; END $$")
    deployment.sql("GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA public, process_manager TO held")
    deployment.sql("GRANT USAGE ON ALL SEQUENCES IN SCHEMA process_manager TO held")
    deployment.sql("GRANT USAGE ON SCHEMA process_manager TO held")
    deployment.dispatch(postgres_url=make_dsn(deployment.database_url, options="-c role=held"))
    assert [(deployment.status(row), deployment.started(row)) for row in (good, kept)] == [
        ("SCHEDULED", 1),
        ("WAITING", 0),
    ]
    assert any("row-level security policy" in event for event in deployment.events(kept))


def test_a_partitioned_table_without_a_place_for_what_is_scheduled_starts_nothing(
    deployment: HostileDeployment,
) -> None:
    deployment.sql("DROP VIEW mm_run_wait_vw; ALTER TABLE mm_run_plc RENAME TO old")
    deployment.sql("CREATE TABLE mm_run_plc (LIKE old INCLUDING DEFAULTS) PARTITION BY LIST (run_sttus_name)")
    deployment.sql("CREATE SEQUENCE ids; ALTER TABLE mm_run_plc ALTER run_id SET DEFAULT nextval('ids')")
    deployment.sql("CREATE TABLE waits PARTITION OF mm_run_plc FOR VALUES IN ('WAITING')")
    deployment.sql("CREATE VIEW mm_run_wait_vw AS SELECT * FROM mm_run_plc WHERE run_sttus_name = 'WAITING'")
    row = deployment.add()
    deployment.dispatch()
    assert (deployment.status(row), deployment.started(row)) == ("WAITING", 0)
    assert any("not started" in event and "no partition" in event for event in deployment.events(row))


def test_a_run_id_behind_a_domain(deployment: HostileDeployment) -> None:
    deployment.sql("CREATE DOMAIN d AS bigint CHECK (VALUE > 0); CREATE DOMAIN e AS d NOT NULL")
    deployment.sql("DROP VIEW mm_run_wait_vw; ALTER TABLE mm_run_plc ALTER run_id DROP IDENTITY")
    deployment.sql("ALTER TABLE mm_run_plc ALTER run_id TYPE e")
    deployment.sql("CREATE SEQUENCE ids; ALTER TABLE mm_run_plc ALTER run_id SET DEFAULT nextval('ids')")
    deployment.sql("CREATE VIEW mm_run_wait_vw AS SELECT * FROM mm_run_plc WHERE run_sttus_name = 'WAITING'")
    row, refused = deployment.add(), deployment.add(job_id=UNKNOWN_JOB)
    deployment.dispatch()
    assert (deployment.status(row), deployment.started(row), deployment.status(refused)) == ("SCHEDULED", 1, "FAILED")
