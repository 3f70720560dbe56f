"""Rows that the view shows and no dispatch can take, and rows that somebody holds: they keep no other row back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager

import psycopg2
import pytest
from psycopg2.extensions import make_dsn

from pm_dagster.dispatch.ports import Backlog
from pm_dagster.dispatch.service import Dispatch
from pm_dagster.dispatch.untakeable import Untakeable
from pm_dagster.ledger.control_plane import PostgresControlPlane
from pm_dagster_tests.cli.shell import Shell
from pm_dagster_tests.hostile.deployment import JOB, HostileDeployment

_COLUMNS = "run_id, cntrt_id, file_name, wkf_job_id, wkf_job_run_id"
_LOOSE = f"CREATE OR REPLACE VIEW mm_run_wait_vw AS SELECT {_COLUMNS} FROM mm_run_plc WHERE {{}}"  # noqa: S608
_WITH_STATUS = f"CREATE VIEW mm_run_wait_vw AS SELECT {_COLUMNS}, {{}} AS run_sttus_name FROM mm_run_plc"  # noqa: S608
#: Numbered rows: three that cannot be had, the oldest, and a good one behind them.
_OLDEST = [1, 2, 3]

NO_ROW = "has no such row"
STATUS = "that is not 'WAITING' (PM_STATUS_WAITING)"
KINDS: dict[str, tuple[list[str], str]] = {
    "letters of another case": (
        [
            _LOOSE.format("upper(run_sttus_name) = 'WAITING'"),
            "UPDATE mm_run_plc SET run_sttus_name = 'Waiting' WHERE run_id <= 3",
        ],
        STATUS,
    ),
    "a trailing blank": (
        [
            _LOOSE.format("trim(run_sttus_name) = 'WAITING'"),
            "UPDATE mm_run_plc SET run_sttus_name = 'WAITING ' WHERE run_id <= 3",
        ],
        STATUS,
    ),
    "a view that knows more words": (
        [
            _LOOSE.format("run_sttus_name IN ('WAITING', 'QUEUED')"),
            "UPDATE mm_run_plc SET run_sttus_name = 'QUEUED' WHERE run_id <= 3",
        ],
        "says 'QUEUED', not 'WAITING'",
    ),
    "no status at all": (
        [
            _LOOSE.format("coalesce(run_sttus_name, 'WAITING') = 'WAITING'"),
            "UPDATE mm_run_plc SET run_sttus_name = NULL WHERE run_id <= 3",
        ],
        "says null, not 'WAITING'",
    ),
    "a status of the view's own": (
        [
            "DROP VIEW mm_run_wait_vw",
            _WITH_STATUS.format("CASE WHEN run_id <= 3 THEN 'Waiting' ELSE run_sttus_name END"),
        ],
        "own run_sttus_name says 'Waiting'",
    ),
    "a status of the view's own, over a table that says none": (
        [
            "DROP VIEW mm_run_wait_vw",
            _WITH_STATUS.format("upper(run_sttus_name)"),
            "UPDATE mm_run_plc SET run_sttus_name = 'Waiting' WHERE run_id <= 3",
        ],
        STATUS,
    ),
    "a view over a copy": (
        [
            "CREATE TABLE copy AS SELECT * FROM mm_run_plc",
            f"CREATE OR REPLACE VIEW mm_run_wait_vw AS SELECT {_COLUMNS} FROM copy WHERE run_sttus_name = 'WAITING'",  # noqa: S608
            "DELETE FROM mm_run_plc WHERE run_id <= 3",
        ],
        NO_ROW,
    ),
    "a view over the parent of the table": (
        [
            "CREATE TABLE every (LIKE mm_run_plc)",
            "ALTER TABLE mm_run_plc INHERIT every",
            "CREATE TABLE other () INHERITS (every)",
            "INSERT INTO other SELECT * FROM mm_run_plc WHERE run_id <= 3",
            "DELETE FROM mm_run_plc WHERE run_id <= 3",
            f"CREATE OR REPLACE VIEW mm_run_wait_vw AS SELECT {_COLUMNS} FROM every WHERE run_sttus_name = 'WAITING'",  # noqa: S608
        ],
        NO_ROW,
    ),
    "row security against changes": (
        [
            "ALTER TABLE mm_run_plc ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY",
            "CREATE POLICY see ON mm_run_plc FOR SELECT USING (true)",
            "CREATE POLICY change ON mm_run_plc FOR UPDATE USING (run_id > 3)",
        ],
        "keeps our user from changing it",
    ),
    "row security against being seen": (
        [
            "ALTER TABLE mm_run_plc ENABLE ROW LEVEL SECURITY",
            "CREATE POLICY see ON mm_run_plc USING (run_id > 3)",
        ],
        "or row security on public.mm_run_plc hides it from our user",
    ),
}


def _limited(deployment: HostileDeployment | Shell) -> str:
    """The database's URL for a role that row security holds for."""
    for statement in (
        "DO $$ BEGIN CREATE ROLE limited; EXCEPTION WHEN duplicate_object THEN NULL; END $$",
        "GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA public, process_manager TO limited",
        "GRANT USAGE ON ALL SEQUENCES IN SCHEMA process_manager TO limited",
        "GRANT USAGE ON SCHEMA process_manager TO limited",
    ):
        deployment.sql(statement)
    return make_dsn(deployment.database_url, options="-c role=limited")


def _laid_out(deployment: HostileDeployment, kind: str) -> str:
    """Three rows of the kind and a good one behind them; gives the URL to dispatch with."""
    assert [deployment.add() for _ in range(4)] == [*_OLDEST, 4]
    for statement in KINDS[kind][0]:
        deployment.sql(statement)
    return _limited(deployment)


@contextmanager
def _control(deployment: HostileDeployment, **changes: object) -> Iterator[PostgresControlPlane]:
    control = PostgresControlPlane(deployment.settings(**changes), actor="test")
    try:
        yield control
    finally:
        control.end()


def _asked(deployment: HostileDeployment, url: str) -> tuple[Backlog, list[Untakeable]]:
    with _control(deployment, postgres_url=url) as control:
        return control.backlog(), control.untakeable(10)


@pytest.mark.parametrize("kind", KINDS)
def test_they_are_counted_apart_named_and_keep_no_row_back(deployment: HostileDeployment, kind: str) -> None:
    url = _laid_out(deployment, kind)
    backlog, named = _asked(deployment, url)
    assert (backlog.ready, backlog.untakeable, backlog.locked) == (1, 3, 0)
    assert [row.run_id for row in named] == _OLDEST
    for row in named:
        assert KINDS[kind][1] in row.reason
        assert row.remedy
        assert not row.settled
    report = deployment.dispatch(postgres_url=url, dispatch_limit=3)
    assert (report.scheduled, deployment.started(4)) == (1, 1)
    assert [deployment.started(run_id) for run_id in _OLDEST] == [0, 0, 0]
    backlog, named = _asked(deployment, url)
    assert (backlog.ready, backlog.oldest_seconds) == (0, None)
    assert [row.run_id for row in named if not row.settled] == _OLDEST
    assert deployment.sql("SELECT count(*) FROM process_manager.entry WHERE run_id <= 3") == [(0,)]


def test_they_do_not_make_the_oldest_seem_older(deployment: HostileDeployment) -> None:
    url = _laid_out(deployment, "letters of another case")
    deployment.sql("UPDATE mm_run_plc SET rgstr_file_time = now() - interval '1 day' WHERE run_id <= 3")
    backlog, _ = _asked(deployment, url)
    assert backlog.oldest_seconds is not None
    assert backlog.oldest_seconds < 36_000


def test_a_row_that_is_mended_is_taken(deployment: HostileDeployment) -> None:
    url = _laid_out(deployment, "a view over a copy")
    deployment.dispatch(postgres_url=url)
    deployment.sql("INSERT INTO mm_run_plc SELECT * FROM copy WHERE run_id = 2")
    deployment.dispatch(postgres_url=url)
    assert (deployment.status(2), deployment.started(2)) == ("SCHEDULED", 1)


def test_a_view_that_lags_behind_is_no_lost_work(deployment: HostileDeployment) -> None:
    row = deployment.add()
    deployment.sql("CREATE MATERIALIZED VIEW lagging AS SELECT * FROM mm_run_wait_vw")
    deployment.dispatch(wait_view="lagging")
    with _control(deployment, wait_view="lagging") as control:
        backlog, (told,) = control.backlog(), control.untakeable(10)
    assert (backlog.ready, backlog.untakeable, told.run_id, told.settled) == (0, 1, row, True)
    assert "says 'SCHEDULED'" in told.reason


@pytest.mark.parametrize(
    "id_of_a_row",
    ["NULL", "1.5::numeric", "'NaN'::numeric", "1e30::numeric", "-1e19::numeric"],
)
def test_rows_without_an_id_are_told_in_addition_to_the_limit(deployment: HostileDeployment, id_of_a_row: str) -> None:
    good = [deployment.add() for _ in range(3)]
    kind = "bigint" if id_of_a_row == "NULL" else "numeric"
    deployment.sql(
        f"CREATE VIEW partly AS SELECT run_id::{kind}, cntrt_id, file_name, wkf_job_id, wkf_job_run_id,"  # noqa: S608
        f" rgstr_file_time FROM mm_run_plc UNION ALL SELECT {id_of_a_row}, 1, 'f', {JOB}, NULL, '1999-01-01'"
        " FROM generate_series(1, 100)"
    )
    with _control(deployment, wait_view="partly") as control:
        assert (control.backlog().ready, control.backlog().untakeable) == (3, 100)
        assert {row.run_id for row in control.untakeable(100)} == {None}
    report = deployment.dispatch(wait_view="partly", dispatch_limit=2)
    assert report.scheduled == 2
    refused = [row for row in report.rows if row.run_id not in good]
    assert 1 <= len(refused) <= 20
    assert deployment.dispatch(wait_view="partly", dispatch_limit=2).scheduled == 1


@contextmanager
def _locked(deployment: HostileDeployment, run_ids: list[int], how: str = "FOR UPDATE") -> Iterator[None]:
    with closing(psycopg2.connect(deployment.database_url)) as owner, owner.cursor() as cursor:
        cursor.execute(f"SELECT FROM mm_run_plc WHERE run_id = ANY(%s) {how}", (run_ids,))
        yield
        owner.rollback()


@pytest.mark.parametrize("how", ["FOR UPDATE", "FOR NO KEY UPDATE", "FOR SHARE"])
def test_locked_rows_keep_no_row_back_and_wait_for_nobody(deployment: HostileDeployment, how: str) -> None:
    rows = [deployment.add() for _ in range(5)]
    with _locked(deployment, rows[:3], how):
        report = deployment.dispatch(dispatch_limit=3)
        assert report.scheduled == 2
        assert [deployment.status(row) for row in rows] == ["WAITING"] * 3 + ["SCHEDULED"] * 2
        with _control(deployment) as control:
            backlog = control.backlog()
            assert control.held(rows) == set(rows[:3])
        assert (backlog.ready, backlog.locked, backlog.untakeable, backlog.oldest_seconds) == (0, 3, 0, None)
    with _control(deployment) as control:
        assert (control.backlog().ready, control.backlog().locked) == (3, 0)
    assert deployment.dispatch(dispatch_limit=3).scheduled == 3


def test_a_lock_on_one_of_several_rows_holds_no_run_up(deployment: HostileDeployment) -> None:
    rows = [deployment.add() for _ in range(2)]
    with _locked(deployment, rows[:1]), _control(deployment) as control:
        assert control.backlog().ready > 0
        assert deployment.dispatch().scheduled == 1


def test_an_answer_whose_row_is_locked_starts_no_dispatch_until_it_can_be_written(
    deployment: HostileDeployment,
) -> None:
    row = deployment.add()
    settings = deployment.settings()
    with _control(deployment) as control:
        (entry,) = Dispatch(control, None, settings).claim(control.waiting(1)).new  # type: ignore[arg-type]
    deployment.sql(
        "UPDATE process_manager.entry SET state = 'ACCEPTED', accepted_run_id = 5 WHERE entry_id = %s", entry.entry_id
    )
    with _control(deployment) as control:
        with _locked(deployment, [row]):
            assert (control.backlog().ready, control.backlog().locked) == (0, 1)
        assert (control.backlog().ready, control.backlog().locked) == (1, 0)
    deployment.dispatch()
    assert (deployment.status(row), deployment.started(row)) == ("SCHEDULED", 0)


def test_a_row_that_stands_twice_is_refused_also_when_the_limit_cuts_between(deployment: HostileDeployment) -> None:
    twice, good = deployment.add(), deployment.add()
    deployment.sql(
        "CREATE VIEW doubled AS SELECT * FROM mm_run_wait_vw UNION ALL SELECT * FROM mm_run_wait_vw WHERE run_id = 1"
    )
    report = deployment.dispatch(wait_view="doubled", dispatch_limit=1)
    assert (deployment.status(twice), deployment.started(twice)) == ("FAILED", 0)
    assert (deployment.status(good), deployment.started(good)) == ("SCHEDULED", 1)
    assert any("stands 2 times" in row.reason for row in report.rows)


def test_rows_that_another_dispatch_takes_are_replaced_by_the_next_ones(deployment: HostileDeployment) -> None:
    rows = [deployment.add() for _ in range(6)]
    settings = deployment.settings()
    with _control(deployment) as first, _control(deployment) as second:
        late = Dispatch(first, None, settings)  # type: ignore[arg-type]
        read = late.read(3)
        taken = Dispatch(second, None, settings).claim(second.waiting(3), 3)  # type: ignore[arg-type]
        claimed = late.claim(read, 3)
    assert [entry.run_id for entry in taken.new] == rows[:3]
    assert [entry.run_id for entry in claimed.new] == rows[3:]
    assert [row.run_id for row in claimed.rows[3:]] == rows[3:]


def test_refused_rows_keep_no_row_back(deployment: HostileDeployment) -> None:
    bad, good = [deployment.add(job_id=None) for _ in range(3)], deployment.add()
    deployment.dispatch(dispatch_limit=3)
    assert [deployment.status(row) for row in (*bad, good)] == ["FAILED"] * 3 + ["SCHEDULED"]


def test_rows_that_were_read_elsewhere_are_taken_up_to_the_limit(deployment: HostileDeployment) -> None:
    rows = [deployment.add() for _ in range(4)]
    settings = deployment.settings()
    with _control(deployment) as control:
        read = control.waiting(4)
        claimed = Dispatch(control, None, settings).claim(read, 2)  # type: ignore[arg-type]
    assert [entry.run_id for entry in claimed.new] == rows[:2]


@pytest.fixture
def stuck(shell: Shell) -> Shell:
    """One row that the view alone calls waiting, and a good one."""
    shell.sql(_LOOSE.format("upper(run_sttus_name) = 'WAITING'"))
    shell.add(2)
    shell.sql("UPDATE mm_run_plc SET run_sttus_name = 'Waiting' WHERE run_id = 1")
    return shell


def test_every_command_says_the_same(stuck: Shell) -> None:
    status = stuck.json("status")
    assert (status["backlog"]["ready"], status["backlog"]["untakeable"]) == (1, 1)
    assert [row["run_id"] for row in status["untakeable"]] == [1]
    assert "'Waiting'" in status["untakeable"][0]["reason"]
    assert "'Waiting'" in stuck.pm("status").stdout
    plan = stuck.json("plan")
    assert [(row["run_id"], row["would"]) for row in plan["rows"]] == [(2, "start")]
    assert plan["untakeable"] == status["untakeable"]
    why = stuck.json("explain", "1")["why"]
    assert "'Waiting'" in why
    assert "no dispatch can take it" in why
    assert "PM_STATUS_WAITING" in why
    red = [check for check in stuck.json_and_code(1, "doctor")["checks"] if not check["ok"]]
    assert [check["check"] for check in red] == ["rows that wait"]
    assert "run id 1" in red[0]["found"]
    assert stuck.json("dispatch")["scheduled"] == 1
    assert stuck.statuses() == {"Waiting": 1, "SCHEDULED": 1}


def test_every_command_says_the_same_of_row_security(shell: Shell) -> None:
    shell.add(2)
    shell.sql("ALTER TABLE mm_run_plc ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY")
    shell.sql("CREATE POLICY see ON mm_run_plc FOR SELECT USING (true)")
    shell.sql("CREATE POLICY change ON mm_run_plc FOR UPDATE USING (run_id > 1)")
    shell.settings["PM_POSTGRES_URL"] = _limited(shell)
    assert [row["run_id"] for row in shell.json("status")["untakeable"]] == [1]
    assert [row["run_id"] for row in shell.json("plan", "--limit", "1")["rows"]] == [2]
    assert "row security" in shell.json("explain", "1")["why"]
    assert "no dispatch has taken it yet" in shell.json("explain", "2")["why"]
    red = [check["found"] for check in shell.json_and_code(1, "doctor")["checks"] if not check["ok"]]
    assert len(red) == 1
    assert "row security" in red[0]
    assert shell.json("dispatch", "--limit", "1")["scheduled"] == 1


def test_a_locked_row_is_explained(shell: Shell) -> None:
    shell.add()
    deployment = HostileDeployment(shell.database_url, shell.workspace)
    with _locked(deployment, [1]):
        assert "locked" in shell.json("explain", "1")["why"]
        assert shell.json("status")["backlog"]["locked"] == 1
    assert "locked" not in shell.json("explain", "1")["why"]


def test_the_padding_of_a_status_is_no_other_status(shell: Shell) -> None:
    shell.sql("DROP VIEW mm_run_wait_vw")
    shell.sql("DROP INDEX mm_run_plc_waiting_ix")
    shell.sql("ALTER TABLE mm_run_plc ALTER run_sttus_name TYPE char(20)")
    shell.sql(_LOOSE.format("run_sttus_name = 'WAITING'"))
    shell.add()
    assert "no dispatch has taken it yet" in shell.json("explain", "1")["why"]
    assert shell.json("doctor")["ok"]
    assert shell.json("dispatch")["scheduled"] == 1
