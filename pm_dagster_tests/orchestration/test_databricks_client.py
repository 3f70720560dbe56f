"""Signing in by dagster-databricks: by copies of the modules that it takes, or by the package as a whole."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from pm_dagster.config.settings import Settings
from pm_dagster.databricks.sign_in import signed_in
from pm_dagster.orchestration.databricks_client import client_resource
from pm_dagster_tests.databricks.tiny_server import json_reply, tiny_server

_TOKEN = "dapi-made-up"
_HOST = "https://adb-1.2.azuredatabricks.net"
_SIGN_IN = """
import logging, os, sys
from pm_dagster.config.settings import Settings
from pm_dagster.databricks.runs import SdkRuns
from pm_dagster.orchestration.databricks_client import workspace_config
logging.basicConfig(level=logging.INFO)
config = workspace_config(os.environ, Settings())
print(SdkRuns(config, Settings()).check())
print([name for name in ("aiohttp", "dagster_databricks", "dagster_pyspark", "pyspark") if name in sys.modules])
print(sum(name.startswith("databricks.sdk.service.") for name in sys.modules))
"""
_OTHERS = """
import dagster_databricks, databricks.sdk, pyspark
print(dagster_databricks.PipesDatabricksClient.__name__, dagster_databricks.__version__)
resource = dagster_databricks.DatabricksClientResource(host="http://127.0.0.1:1", token="another")
print(type(resource.get_client().workspace_client) is databricks.sdk.WorkspaceClient)
"""


def _process(host: str, code: str, *folders: Path) -> subprocess.CompletedProcess[str]:
    variables = {"DATABRICKS_HOST": host, "DATABRICKS_TOKEN": _TOKEN, "PYTHONPATH": os.pathsep.join(map(str, folders))}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **variables}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done


def test_calls_go_out_as_dagster_databricks_and_the_rest_of_it_is_not_imported() -> None:
    with tiny_server() as server:
        server.replies(json_reply(userName="somebody"))
        who, imported, services = _process(server.host, _SIGN_IN).stdout.splitlines()
    assert (who, imported) == ("somebody", "[]")
    assert 0 < int(services) < 10
    (asked,) = server.asked
    headers = {name.lower(): value for name, value in asked.headers.items()}
    assert "dagster-databricks/" in headers["user-agent"]
    assert headers["authorization"] == f"Bearer {_TOKEN}"


def test_whoever_imports_the_package_afterwards_gets_it_whole() -> None:
    with tiny_server() as server:
        server.replies(json_reply(userName="somebody"))
        lines = _process(server.host, _SIGN_IN + _OTHERS).stdout.splitlines()
    assert lines[3].startswith("PipesDatabricksClient ")
    assert lines[4] == "True"


def test_one_that_is_imported_already_is_taken_as_it_is() -> None:
    with tiny_server() as server:
        server.replies(json_reply(userName="somebody"))
        done = _process(server.host, "import dagster_databricks" + _SIGN_IN)
    assert done.stdout.splitlines()[0] == "somebody"
    assert "imported as a whole" not in done.stderr


def test_a_version_that_is_put_together_in_another_way_is_imported_as_a_whole(tmp_path: Path) -> None:
    spec = find_spec("dagster_databricks")
    assert spec is not None
    assert spec.origin is not None
    package = shutil.copytree(Path(spec.origin).parent, tmp_path / "dagster_databricks")
    file = package / "databricks.py"
    ordinary, tomorrow = "WorkspaceClient(config=self.config)", "WorkspaceClient(config=self.config, host=None)"
    text = file.read_text(encoding="utf-8")
    assert ordinary in text
    file.write_text(text.replace(ordinary, tomorrow), encoding="utf-8")
    with tiny_server() as server:
        server.replies(json_reply(userName="somebody"))
        done = _process(server.host, _SIGN_IN, tmp_path)
    who, imported, _ = done.stdout.splitlines()
    assert (who, imported) == ("somebody", "['aiohttp', 'dagster_databricks', 'dagster_pyspark', 'pyspark']")
    assert "dagster-databricks is imported as a whole" in done.stderr
    assert _TOKEN not in done.stderr
    (asked,) = server.asked
    assert "dagster-databricks/" in {name.lower(): value for name, value in asked.headers.items()}["user-agent"]


@pytest.mark.parametrize("alone", [True, False])
def test_no_field_of_the_resource_shows_a_secret(*, alone: bool) -> None:
    config = signed_in({"DATABRICKS_HOST": _HOST, "DATABRICKS_TOKEN": _TOKEN}, Settings())
    assert "made-up" not in repr(client_resource(config, alone=alone))
