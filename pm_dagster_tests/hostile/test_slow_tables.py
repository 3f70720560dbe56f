"""Control tables whose owner's trigger is slow: rows are closed one by one, what does not fit comes later, named."""

from __future__ import annotations

import time

import pytest

from pm_dagster.errors import ControlPlaneUnavailable
from pm_dagster.ledger import closing
from pm_dagster_tests.hostile.deployment import UNKNOWN_JOB, HostileDeployment

_SLOW = """
CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN IF {which} THEN PERFORM pg_sleep({seconds}); END IF; RETURN NEW; END $$;
CREATE TRIGGER slow {when} UPDATE ON mm_run_plc {deferred} FOR EACH ROW EXECUTE FUNCTION slow()
"""


def _slow(
    deployment: HostileDeployment, seconds: float, which: str = "true", when: str = "BEFORE", deferred: str = ""
) -> None:
    statement = _SLOW.format(which=which, seconds=seconds, when=when, deferred=deferred)
    if deferred:
        statement = statement.replace("CREATE TRIGGER", "CREATE CONSTRAINT TRIGGER")
    deployment.sql(statement)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes half a minute outside takes seconds here."""
    monkeypatch.setattr(closing, "_LONGEST_TOGETHER_SECONDS", 1.0)
    monkeypatch.setattr(closing, "_LONGEST_REHEARSAL_SECONDS", 0.5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("when", "deferred"),
    [
        pytest.param("BEFORE", "", marks=pytest.mark.chaos),
        ("AFTER", ""),
        pytest.param("AFTER", "DEFERRABLE INITIALLY DEFERRED", marks=pytest.mark.chaos),
    ],
)
def test_rows_that_take_too_long_together_are_closed_one_by_one(
    deployment: HostileDeployment, when: str, deferred: str
) -> None:
    rows = [deployment.add() for _ in range(4)]
    refused = deployment.add(job_id=UNKNOWN_JOB)
    malformed = deployment.add(job_id=None)
    _slow(deployment, 0.6, "OLD.run_sttus_name = 'WAITING'", when, deferred)
    deployment.dispatch(row_seconds=20.0)
    assert [deployment.status(row) for row in rows] == ["SCHEDULED"] * 4
    assert [deployment.status(row) for row in (refused, malformed)] == ["FAILED", "FAILED"]
    assert [deployment.started(row) for row in rows] == [1] * 4


@pytest.mark.slow
def test_a_row_that_takes_longer_than_a_row_may_is_named_and_stops_no_other(deployment: HostileDeployment) -> None:
    first, slow, last = (deployment.add() for _ in range(3))
    deployment.sql("UPDATE mm_run_plc SET cntrt_id = 13 WHERE run_id = %s", slow)
    _slow(
        deployment,
        30,
        "OLD.cntrt_id = 13 AND NEW.run_sttus_name <> OLD.run_sttus_name AND NEW.wkf_job_run_id IS NOT NULL",
    )
    # A dispatch tries one row for all, by chance. While that is the slow one, the others wait for the next dispatch.
    for dispatches in range(1, 12):
        deployment.dispatch(row_seconds=3.0)
        if dispatches >= 2 and "WAITING" not in (deployment.status(first), deployment.status(last)):
            break
    assert [deployment.status(row) for row in (first, slow, last)] == ["SCHEDULED", "WAITING", "SCHEDULED"]
    assert deployment.started(slow) <= 1
    assert any("takes longer than 3 s to write this row" in event for event in deployment.events(slow))
    deployment.sql("DROP TRIGGER slow ON mm_run_plc")
    deployment.sql("UPDATE process_manager.entry SET not_before = now()")
    deployment.dispatch()
    assert (deployment.status(slow), deployment.started(slow)) == ("SCHEDULED", 1)


def test_what_the_deadline_cuts_off_is_closed_by_the_next_dispatch(deployment: HostileDeployment) -> None:
    rows = [deployment.add() for _ in range(6)]
    _slow(deployment, 0.8)
    began = time.monotonic()
    deployment.dispatch(row_seconds=20.0, deadline_seconds=4.0)
    assert time.monotonic() - began < 12
    left = [row for row in rows if deployment.status(row) == "WAITING"]
    assert left
    assert len(left) < 6, "what is done is kept"
    started = [row for row in left if deployment.started(row)]
    assert all(any("is left to the next dispatch" in event for event in deployment.events(row)) for row in started)
    deployment.sql("DROP TRIGGER slow ON mm_run_plc")
    for _ in range(2):
        deployment.dispatch()
    assert [deployment.status(row) for row in rows] == ["SCHEDULED"] * 6
    assert [deployment.started(row) for row in rows] == [1] * 6


@pytest.mark.parametrize("limit", ["statement_timeout = '300ms'", "lock_timeout = '1ms'"])
def test_limits_that_the_owner_set_for_the_role_do_not_end_the_closing(
    deployment: HostileDeployment, limit: str
) -> None:
    name = deployment.sql("SELECT current_database()")[0][0]
    deployment.sql(f'ALTER ROLE postgres IN DATABASE "{name}" SET {limit}')
    row = deployment.add()
    _slow(deployment, 0.5)
    deployment.dispatch()
    assert (deployment.status(row), deployment.started(row)) == ("SCHEDULED", 1)


@pytest.mark.slow
def test_a_lease_outlasts_the_one_long_write(deployment: HostileDeployment) -> None:
    rows = [deployment.add() for _ in range(2)]
    _slow(deployment, 3)
    deployment.dispatch(liveness="lease", lease_seconds=2.0, row_seconds=20.0)
    assert [(deployment.status(row), deployment.started(row)) for row in rows] == [("SCHEDULED", 1)] * 2
    assert deployment.sql("SELECT count(*) FROM process_manager.dispatcher WHERE ended_as = 'dead'") == [(0,)]


def test_a_write_that_somebody_cancels_is_no_slow_row(deployment: HostileDeployment) -> None:
    """57014 again, but not by the clock: as before, the database is asked again."""
    row = deployment.add()
    deployment.sql(
        "CREATE FUNCTION cancelled() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " RAISE EXCEPTION USING ERRCODE = '57014'; END $$;"
        "CREATE TRIGGER cancelled AFTER UPDATE ON mm_run_plc FOR EACH ROW"
        " EXECUTE FUNCTION cancelled()"
    )
    with pytest.raises(ControlPlaneUnavailable):
        deployment.dispatch()
    deployment.sql("DROP TRIGGER cancelled ON mm_run_plc")
    deployment.dispatch()
    assert (deployment.status(row), deployment.started(row)) == ("SCHEDULED", 1)


@pytest.mark.parametrize(
    "guard",
    [
        "ALTER TABLE mm_run_plc ADD CHECK (run_page_url NOT LIKE 'http%')",
        "ALTER TABLE mm_run_plc ADD CHECK (length(msg) < 1)",
        "CREATE UNIQUE INDEX ON mm_run_plc (left(run_page_url, 4))",
    ],
)
def test_a_link_or_message_that_the_table_refuses_does_not_keep_the_row_open(
    deployment: HostileDeployment, guard: str
) -> None:
    deployment.sql(guard)
    rows = [deployment.add() for _ in range(2)]
    deployment.dispatch()
    assert [(deployment.status(row), deployment.started(row)) for row in rows] == [("SCHEDULED", 1)] * 2
    assert [run for (run,) in deployment.sql("SELECT wkf_job_run_id FROM mm_run_plc") if run is None] == []
    assert any("without link and message" in event for row in rows for event in deployment.events(row))


def test_a_table_that_never_takes_a_row_in_time_starts_nothing(deployment: HostileDeployment) -> None:
    rows = [deployment.add() for _ in range(3)]
    _slow(deployment, 30)
    deployment.dispatch(row_seconds=1.5)
    assert [(deployment.status(row), deployment.started(row)) for row in rows] == [("WAITING", 0)] * 3
    assert all(any("takes longer than 1.5 s" in event for event in deployment.events(row)) for row in rows)
