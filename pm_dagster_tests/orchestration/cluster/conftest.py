"""A deployment of each test's own."""

from __future__ import annotations

from collections.abc import Iterator

import dagster as dg
import pytest

from pm_dagster.sandbox.workspace import LocalWorkspace
from pm_dagster_tests.orchestration.cluster.deployment import Deployment


@pytest.fixture
def deployment(monkeypatch: pytest.MonkeyPatch) -> Iterator[Deployment]:
    with LocalWorkspace() as workspace, dg.DagsterInstance.ephemeral() as instance:
        workspace.switches.cancel_seconds = 0.0
        for name, value in {"HOST": workspace.host, "TOKEN": workspace.token}.items():
            monkeypatch.setenv(f"DATABRICKS_{name}", value)
        monkeypatch.setenv("PM_CALL_BACKOFF_SECONDS", "0.01")
        yield Deployment(workspace, instance)
