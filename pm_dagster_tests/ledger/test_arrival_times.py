"""The time at which a row began to wait: one zone for it and for its age, whatever its column's type."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from pm_dagster.config.settings import Settings, settings_from
from pm_dagster.errors import ConfigurationError
from pm_dagster.ledger.control_plane import PostgresControlPlane
from pm_dagster.ledger.waiting_rows import WaitingAsText
from pm_dagster_tests.ledger.postgres_control_table import PostgresControlTable

_BERLIN = ZoneInfo("Europe/Berlin")


def _control(table: PostgresControlTable, **settings: Any) -> PostgresControlPlane:  # noqa: ANN401
    return table.dispatcher(**settings)


def _since(table: PostgresControlTable, **settings: Any) -> datetime | None:  # noqa: ANN401
    """As the driver reads it; Spark's way of reading gives the same."""
    (row,) = _control(table, **settings).waiting(1)
    text = WaitingAsText(replace(table.settings, **settings))
    try:
        read = text.read(1)
        (same,) = text.rows(read, table.ask_after(read.session, read.query))
    finally:
        text.end()
    assert same.since == row.since
    return row.since


def _arrived(table: PostgresControlTable, expression: str, type_: str = "timestamp") -> None:
    table.ask("DROP VIEW IF EXISTS mm_run_wait_vw CASCADE")
    table.ask(f"ALTER TABLE mm_run_plc ALTER COLUMN rgstr_file_time TYPE {type_} USING rgstr_file_time::{type_}")
    table.ask(
        "CREATE VIEW mm_run_wait_vw AS SELECT run_id, cntrt_id, wkf_job_id, wkf_job_run_id, file_name, rgstr_file_time"
        " FROM mm_run_plc WHERE run_sttus_name = 'WAITING'"
    )
    table.add()
    table.ask(f"UPDATE mm_run_plc SET rgstr_file_time = {expression}")  # noqa: S608 our own


def _session_zone(table: PostgresControlTable, zone: str) -> None:
    (name,) = table.ask("SELECT current_database()")[0]
    table.ask(f"ALTER DATABASE {name} SET TimeZone = '{zone}'")


@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Asia/Kolkata"])
@pytest.mark.parametrize("type_", ["timestamp", "timestamptz"])
def test_a_row_that_came_ten_minutes_ago_is_ten_minutes_old(table: PostgresControlTable, zone: str, type_: str) -> None:
    """As its owner's session writes it: ``now()`` into a column without a zone is the session's local time."""
    _session_zone(table, zone)
    _arrived(table, "now() - interval '10 minutes'", type_)
    since = _since(table)
    assert since is not None
    assert 595 < (datetime.now(UTC) - since).total_seconds() < 660
    assert 595 < (_control(table).backlog().oldest_seconds or 0) < 660


def test_an_owner_who_writes_in_another_zone_than_the_session(table: PostgresControlTable) -> None:
    _session_zone(table, "America/New_York")
    _arrived(table, "(now() - interval '10 minutes') AT TIME ZONE 'Europe/Berlin'")
    since = _since(table, time_zone="Europe/Berlin")
    assert since is not None
    assert 595 < (datetime.now(UTC) - since).total_seconds() < 660
    assert 595 < (_control(table, time_zone="Europe/Berlin").backlog().oldest_seconds or 0) < 660


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("2026-03-29 01:30", datetime(2026, 3, 29, 0, 30, tzinfo=UTC)),
        ("2026-03-29 02:30", datetime(2026, 3, 29, 1, 30, tzinfo=UTC)),  # an hour that Berlin has not: that after it
        ("2026-03-29 03:30", datetime(2026, 3, 29, 1, 30, tzinfo=UTC)),
        ("2026-10-25 02:30", datetime(2026, 10, 25, 1, 30, tzinfo=UTC)),  # an hour that it has twice: the second
        ("2026-07-01 00:00", datetime(2026, 7, 1, tzinfo=_BERLIN)),
        ("infinity", None),
        ("-infinity", None),
        ("294276-12-31 23:59:59", None),
        ("4713-01-01 00:00:00 BC", None),
        ("0001-01-01 00:00:00", None),
    ],
)
def test_the_hours_that_a_clock_skips_and_repeats_and_times_beyond_all_clocks(
    table: PostgresControlTable, written: str, meant: datetime | None
) -> None:
    _arrived(table, f"'{written}'")
    assert _since(table, time_zone="Europe/Berlin") == meant
    age = _control(table, time_zone="Europe/Berlin").backlog().oldest_seconds
    expected = None if meant is None else max(0.0, (datetime.now(UTC) - meant).total_seconds())
    assert age == (expected if expected is None else pytest.approx(expected, abs=60))


def test_a_day_begins_at_its_midnight(table: PostgresControlTable) -> None:
    _arrived(table, "'2026-07-01'", "date")
    assert _since(table, time_zone="Asia/Tokyo") == datetime(2026, 6, 30, 15, tzinfo=UTC)


def test_a_domain_over_a_time_is_one(table: PostgresControlTable) -> None:
    table.ask("CREATE DOMAIN arrival AS timestamp")
    _arrived(table, "'2026-07-01 12:00'", "arrival")
    assert _since(table, time_zone="Asia/Tokyo") == datetime(2026, 7, 1, 3, tzinfo=UTC)


def test_the_oldest_go_first_by_the_clock_of_their_zone(table: PostgresControlTable) -> None:
    _arrived(table, "'2026-07-01 12:00'")
    table.add()
    table.ask(
        "UPDATE mm_run_plc SET rgstr_file_time = '2026-06-30' WHERE run_id = (SELECT max(run_id) FROM mm_run_plc)"
    )
    ids = [row.run_id for row in _control(table, time_zone="Asia/Tokyo").waiting(5)]
    assert ids == [2, 1]


def test_a_zone_that_the_database_does_not_know_is_named(table: PostgresControlTable) -> None:
    with pytest.raises(ConfigurationError, match="PM_TIME_ZONE='Europe/Berln' is no time zone that the database knows"):
        _control(table, time_zone="Europe/Berln").waiting(1)


@pytest.mark.parametrize(
    "text", ["UTC+2", "+02:00", "GMT-3", "2", "Europe/", "'Europe/Berlin'", "Europe/Berlin; --", "CEST5"]
)
def test_what_a_database_would_read_otherwise_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="PM_TIME_ZONE="):
        settings_from({"PM_TIME_ZONE": text})


@pytest.mark.parametrize(
    "text", ["UTC", "Europe/Berlin", "America/Argentina/Buenos_Aires", "Etc/GMT+2", "europe/berlin", "CET"]
)
def test_names_of_zones_are_taken(table: PostgresControlTable, text: str) -> None:
    settings = settings_from({"PM_TIME_ZONE": text})
    assert isinstance(settings, Settings)
    assert _control(table, time_zone=settings.time_zone).waiting(1) == []
