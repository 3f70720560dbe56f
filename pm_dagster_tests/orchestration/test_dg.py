"""The command `dg` checks, lists and launches the project; assets name their owners and their code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

from pm_dagster.definitions import defs
from pm_dagster.orchestration import names
from pm_dagster_tests.orchestration.deployment import Deployment

_ROOT = Path(__file__).parents[2]
_DG = Path(sys.executable).with_name("dg")


def _dg(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    environment |= {"VIRTUAL_ENV": sys.prefix, "DAGSTER_DISABLE_TELEMETRY": "1", **variables}
    return subprocess.run(
        [_DG, *arguments], cwd=_ROOT, env=environment, capture_output=True, text=True, check=False, timeout=240
    )


@pytest.mark.slow
def test_dg_checks_the_definitions() -> None:
    done = _dg("check", "defs")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "All definitions loaded successfully" in done.stdout + done.stderr


@pytest.mark.slow
def test_dg_lists_the_definitions() -> None:
    done = _dg("list", "defs", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout[done.stdout.index("{") :])
    assert {asset["asset_key"] for asset in found["assets"]} == {
        "mm_run_wait_vw",
        "waiting_jobs",
        "dispatched_jobs",
        "process_manager_on_cluster",
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "what",
    [("--job", names.JOB), ("--assets", f"{names.WAITING_JOBS},{names.DISPATCHED_JOBS}")],
    ids=["a job", "assets"],
)
def test_dg_launches_a_dispatch(deployment: Deployment, what: tuple[str, ...]) -> None:
    row = deployment.add()
    done = _dg("launch", *what, **deployment.environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert deployment.status(row)[0] == "SCHEDULED", done.stdout + done.stderr
    assert "Beta" not in done.stderr


def test_assets_name_their_owners_and_their_code() -> None:
    graph = defs.resolve_asset_graph()
    for key in graph.get_all_asset_keys():
        assert graph.get(key).owners == ["team:process-manager"], key
    for name, file in (("waiting_jobs", "assets.py"), ("dispatched_jobs", "assets.py")):
        references = graph.get(dg.AssetKey(name)).metadata["dagster/code_references"]
        assert any(file in str(each) for each in references.code_references), references
