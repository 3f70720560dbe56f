"""The code location loads anywhere, and shows and keeps no secret."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pm_dagster.config.settings import Settings
from pm_dagster.orchestration.resources import ControlTableResource, WorkspaceResource

_HOST = "https://adb-1.2.azuredatabricks.net"
_PAT = {"DATABRICKS_TOKEN": "dapi-made-up"}
_AZURE = {"ARM_CLIENT_ID": "id", "ARM_CLIENT_SECRET": "made-up-secret", "ARM_TENANT_ID": "tenant"}


def test_it_loads_in_a_fresh_interpreter_without_any_variable() -> None:
    code = "import pm_dagster.definitions as d; d.defs.resolve_all_job_defs(); print('loaded')"
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning:pm_dagster", "-c", code],
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "loaded", "")


@pytest.mark.parametrize("chosen", [None, "pat"])
def test_a_token_signs_in_without_a_call(monkeypatch: pytest.MonkeyPatch, chosen: str | None) -> None:
    others = {} if chosen is None else _AZURE | {"DATABRICKS_AUTH_TYPE": chosen}
    for name, value in {"DATABRICKS_HOST": _HOST, **_PAT, **others}.items():
        monkeypatch.setenv(name, value)
    runs = WorkspaceResource().runs(Settings())
    assert runs.page_url(1, 2).startswith(_HOST)


def test_the_launchpad_overrides_the_deployment() -> None:
    settings = ControlTableResource(concurrency=3, queue=False).settings({"PM_CONCURRENCY": "9", "PM_RATE_REPAIR": "2"})
    assert (settings.concurrency, settings.queue, settings.rate_repair) == (3, False, 2.0)


def test_no_field_of_the_launchpad_takes_a_credential() -> None:
    fields = {*ControlTableResource.model_fields, *WorkspaceResource.model_fields}
    assert not {name for name in fields if any(word in name for word in ("url", "token", "secret", "password"))}
