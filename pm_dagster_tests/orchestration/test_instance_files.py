"""Each instance configuration starts a Dagster instance that keeps runs, with one dispatch of a table at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

import dagster as dg
import psycopg2
import pytest
import yaml
from dagster._utils.tags import TagConcurrencyLimitsCounter
from dagster_postgres import PostgresRunStorage
from psycopg2.extensions import parse_dsn

from pm_dagster.definitions import build_definitions
from pm_dagster.orchestration import names
from pm_dagster.sandbox.postgres import EmbeddedPostgres

_DEPLOY = Path(__file__).parents[2] / "deploy"
_KINDS = ["dagster-local", "dagster-production"]
#: What a password may hold that a URL may not.
_PASSWORD = "p@s/s:w%rd 1"


def _instance(text: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> dg.DagsterInstance:
    (home / "dagster.yaml").write_text(text)
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    return dg.DagsterInstance.get()


def _text(kind: str) -> str:
    return (_DEPLOY / kind / "dagster.yaml").read_text()


def _by_its_parts() -> str:
    """The file for production with the block that stands in comments in the place of the other."""
    lines = _text("dagster-production").splitlines()
    begin = lines.index("# storage:")
    length = next(n for n, line in enumerate(lines[begin:]) if not line.startswith("# "))
    parts = yaml.safe_load("\n".join(line.removeprefix("# ") for line in lines[begin : begin + length]))
    # The server of the tests has no TLS.
    assert parts["storage"]["postgres"]["postgres_db"].pop("params") == {"sslmode": "require"}
    return yaml.safe_dump({**yaml.safe_load("\n".join(lines)), **parts})


def _limits(instance: dg.DagsterInstance) -> tuple[object, ...]:
    queue = instance.get_concurrency_config().run_queue_config
    assert queue is not None
    keys = [(limit["key"], limit["value"], limit["limit"]) for limit in queue.tag_concurrency_limits]
    coordinator = instance.run_coordinator
    assert isinstance(coordinator, dg.QueuedRunCoordinator)
    pace = (coordinator.dequeue_interval_seconds, instance.get_settings("sensors")["use_threads"])
    return keys, instance.run_monitoring_enabled, instance.telemetry_enabled, *pace


_EXPECTED = ([(names.SINGLE_FLIGHT, {"applyLimitPerUniqueValue": True}, 1)], True, False, 1, True)


def _keeps_a_run(instance: dg.DagsterInstance) -> bool:
    job = build_definitions().resolve_job_def(names.JOB)
    run = instance.create_run_for_job(job, tags=job.tags)
    instance.report_engine_event("made", run)
    found = instance.get_run_by_id(run.run_id)
    return found is not None and found.tags == run.tags and len(instance.all_logs(run.run_id)) > 0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    """Dagster's own server, reached by TCP and a password."""
    with EmbeddedPostgres(tmp_path / "postgres", port=0, durable=False) as made:
        with closing(psycopg2.connect(made.url)) as owner, owner.cursor() as cursor:
            cursor.execute("CREATE ROLE dagster LOGIN PASSWORD %s", (_PASSWORD,))
            owner.commit()
            owner.autocommit = True
            cursor.execute("CREATE DATABASE dagster OWNER dagster")
        yield made


def test_on_one_machine_it_keeps_everything_in_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with _instance(_text("dagster-local"), tmp_path, monkeypatch) as instance:
        assert _keeps_a_run(instance)
        assert _limits(instance) == _EXPECTED


@pytest.mark.parametrize("form", ["url", "parts"])
def test_in_production_it_keeps_everything_in_postgres(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: EmbeddedPostgres, form: str
) -> None:
    address = parse_dsn(server.tcp_url)
    where = f"{address['host']}:{address['port']}/dagster"
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", f"postgresql+psycopg2://dagster:{quote(_PASSWORD, safe='')}@{where}")
    monkeypatch.setenv("DAGSTER_POSTGRES_HOST", str(address["host"]))
    monkeypatch.setenv("DAGSTER_POSTGRES_PORT", str(address["port"]))
    monkeypatch.setenv("DAGSTER_POSTGRES_USER", "dagster")
    monkeypatch.setenv("DAGSTER_POSTGRES_PASSWORD", _PASSWORD)
    monkeypatch.setenv("DAGSTER_POSTGRES_DB", "dagster")
    if form == "parts":
        monkeypatch.delenv("DAGSTER_POSTGRES_URL")
    text = _text("dagster-production") if form == "url" else _by_its_parts()
    with _instance(text, tmp_path, monkeypatch) as instance:
        assert isinstance(instance.run_storage, PostgresRunStorage)
        assert _keeps_a_run(instance)
        assert _limits(instance) == _EXPECTED


@pytest.mark.parametrize("kind", _KINDS)
def test_the_run_queue_keeps_dispatches_of_one_table_apart_and_lets_those_of_two_run(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By Dagster's own counting, with the runs of two deployments in one instance."""
    file = yaml.safe_load(_text(kind))
    queue = file.get("concurrency", {}).get("runs") or file["run_coordinator"]["config"]
    with _instance(_text("dagster-local"), tmp_path, monkeypatch) as instance:

        def run(table: str) -> dg.DagsterRun:
            monkeypatch.setenv("PM_RUN_TABLE", table)
            job = build_definitions().resolve_job_def(names.JOB)
            return instance.create_run_for_job(job, tags=job.tags)

        counter = TagConcurrencyLimitsCounter(queue["tag_concurrency_limits"], [run("one")])
        assert counter.is_blocked(run("one"))
        assert not counter.is_blocked(run("another"))
