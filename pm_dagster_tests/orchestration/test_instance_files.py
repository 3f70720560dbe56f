"""Both instance configurations start a Dagster instance, with one dispatch at a time."""

from __future__ import annotations

import shutil
from pathlib import Path

import dagster as dg
import pytest
from dagster_postgres import PostgresRunStorage

from pm_dagster.orchestration import names

_DEPLOY = Path(__file__).parents[2] / "deploy"


def _instance(kind: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> dg.DagsterInstance:
    shutil.copy(_DEPLOY / kind / "dagster.yaml", home)
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    return dg.DagsterInstance.get()


def _limits(instance: dg.DagsterInstance) -> tuple[object, ...]:
    queue = instance.get_concurrency_config().run_queue_config
    assert queue is not None
    keys = [(limit["key"], limit["value"], limit["limit"]) for limit in queue.tag_concurrency_limits]
    return keys, instance.run_monitoring_enabled, instance.telemetry_enabled


_EXPECTED = ([(names.SINGLE_FLIGHT, {"applyLimitPerUniqueValue": True}, 1)], True, False)


def test_on_one_machine_it_keeps_everything_in_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with _instance("dagster-local", tmp_path, monkeypatch) as instance:
        assert instance.get_runs_count() == 0
        assert _limits(instance) == _EXPECTED


def test_in_production_it_keeps_everything_in_postgres(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, database_url: str
) -> None:
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", database_url.replace("postgresql:", "postgresql+psycopg2:"))
    with _instance("dagster-production", tmp_path, monkeypatch) as instance:
        assert instance.get_runs_count() == 0
        assert isinstance(instance.run_storage, PostgresRunStorage)
        assert _limits(instance) == _EXPECTED
