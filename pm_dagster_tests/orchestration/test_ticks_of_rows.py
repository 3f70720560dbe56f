"""What the sensor does about rows that cannot be had: it starts no run for them, and says so."""

from __future__ import annotations

import dagster as dg

from pm_dagster.orchestration import names
from pm_dagster_tests.orchestration.conftest import CodeLocation


def _tick(code_location: CodeLocation) -> tuple[int, str]:
    """How many runs the sensor asks for, and what it says instead."""
    sensor = code_location.definitions().get_repository_def().get_sensor_def(names.SENSOR)
    with dg.build_sensor_context(
        instance=code_location.instance, resources={"control_table": code_location.table()}
    ) as context:
        data = sensor.evaluate_tick(context)
    return len(data.run_requests or ()), str(data.skip_message)


def test_rows_that_no_dispatch_can_take_start_no_run_and_are_told(code_location: CodeLocation) -> None:
    code_location.database.loose_view = True
    code_location.database.add(1)
    code_location.database.rows[1].status = "Waiting"
    for _ in range(3):
        runs, said = _tick(code_location)
        assert runs == 0
        assert "No waiting job is ready to dispatch" in said
        assert "not usable by any dispatch: 1, see `pm status`" in said
    code_location.database.rows[1].status = "WAITING"
    assert _tick(code_location)[0] == 1


def test_rows_that_are_all_locked_start_no_run_until_they_are_free(code_location: CodeLocation) -> None:
    code_location.database.add(1)
    code_location.database.rows[1].locked = True
    runs, said = _tick(code_location)
    assert runs == 0
    assert "locked by another session: 1" in said
    code_location.database.rows[1].locked = False
    assert _tick(code_location)[0] == 1


def test_locked_rows_keep_none_back_in_the_partition(code_location: CodeLocation) -> None:
    code_location.with_settings(dispatch_limit=3)
    for number in range(1, 6):
        code_location.database.add(number)
    for number in (1, 2, 3):
        code_location.database.rows[number].locked = True
    assert code_location.dispatch().success
    assert [row.status for row in code_location.database.rows.values()] == ["WAITING"] * 3 + ["SCHEDULED"] * 2


def test_what_is_refused_beyond_the_first_read_is_reported(code_location: CodeLocation) -> None:
    code_location.with_settings(dispatch_limit=1)
    code_location.database.add(1)
    code_location.database.rows[1].locked = True
    code_location.database.add(2, job_id=None)
    code_location.database.add(3)
    result = code_location.dispatch()
    assert result.success
    assert code_location.metadata(result)["new/quarantined"] == 1
    assert code_location.database.statuses() == {1: "WAITING", 2: "FAILED", 3: "SCHEDULED"}
