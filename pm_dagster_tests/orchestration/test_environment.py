"""A resource may read a second set of variables: two control tables or workspaces in one code location."""

from __future__ import annotations

import pytest

from pm_dagster.config.settings import Settings
from pm_dagster.definitions import build_definitions
from pm_dagster.orchestration import names
from pm_dagster.orchestration.resources import ControlTableResource, WorkspaceResource, environment_of


def test_a_second_set_is_never_completed_by_the_first() -> None:
    given = {"PM_SCHEMA": "one", "PGHOST": "first", "DATABRICKS_TOKEN": "t", "HOME": "/h", "SECOND_PM_RUN_TABLE": "two"}
    assert environment_of("", given) == given
    assert environment_of("SECOND_", given) == {"HOME": "/h", "PM_RUN_TABLE": "two"}


def test_two_workspaces_in_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for prefix, host in (("", "https://one.azuredatabricks.net"), ("SECOND_", "https://two.azuredatabricks.net")):
        monkeypatch.setenv(f"{prefix}DATABRICKS_HOST", host)
        monkeypatch.setenv(f"{prefix}DATABRICKS_TOKEN", f"dapi-made-up{prefix}")
    hosts = [WorkspaceResource(variable_prefix=prefix).runs(Settings()).page_url(1, 2) for prefix in ("", "SECOND_")]
    assert [host.partition("://")[2].partition(".")[0] for host in hosts] == ["one", "two"]


def test_dispatches_of_a_second_control_table_do_not_wait_for_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECOND_PM_RUN_TABLE", "another")
    tags = [
        build_definitions(control_table=ControlTableResource(variable_prefix=prefix)).resolve_job_def(names.JOB).tags
        for prefix in ("", "SECOND_")
    ]
    first, second = (tag[names.SINGLE_FLIGHT] for tag in tags)
    assert first.startswith("mm_run_plc.")
    assert second.startswith("another.")
