"""What the bundle's files name exists: variables, clusters, files, targets."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from pm_dagster_tests.bundle import bundle_files
from pm_dagster_tests.bundle.bundle_files import JOB_FILE, ROOT, bundle, job, matches, references, synced_files

_BUILT_IN = {"bundle.name", "bundle.target", "workspace.current_user.userName"}
_NOTEBOOK = "# Databricks notebook source"


def test_every_variable_is_declared_and_every_declared_one_is_used() -> None:
    named = references(job()) | references(bundle())
    declared = {f"var.{name}" for name in bundle()["variables"]}
    assert named - _BUILT_IN == declared


def test_every_variable_is_described_and_only_the_policy_has_no_default() -> None:
    variables = bundle()["variables"]
    assert [name for name, each in variables.items() if not each.get("description")] == []
    assert [name for name, each in variables.items() if "default" not in each] == ["cluster_policy_id"]


def test_what_was_chosen_says_so() -> None:
    text = (ROOT / "databricks.yml").read_text(encoding="utf-8")
    _, _, after = text.partition("\nvariables:\n")
    blocks = re.split(r"\n(?=  [a-z_]+:\n)", after.partition("\ntargets:")[0])
    chosen = [block.split(":")[0].strip() for block in blocks if "# Chosen" in block]
    shared = {"jfrog_secret_key", "skid_secret_key"}  # "as the next two"
    assert set(chosen) | shared == set(bundle()["variables"]) - {"cluster_policy_id"}


def test_targets() -> None:
    targets = bundle()["targets"]
    assert list(targets) == ["dev", "test", "prod", "sandbox"]
    assert {name: each.get("mode") for name, each in targets.items()} == {
        "dev": "development",
        "test": "production",
        "prod": "production",
        "sandbox": None,
    }
    for each in targets.values():
        assert not {"host", "profile"} & set(each.get("workspace", {})), "DATABRICKS_HOST or a profile decides"
    assert "workspace" not in bundle()


def test_only_declared_values_reach_fields_where_the_cli_allows_none() -> None:
    assert references(bundle()["bundle"]) == set()


def test_every_cluster_key_is_defined_once_and_used() -> None:
    defined = [each["job_cluster_key"] for each in job()["job_clusters"]]
    assert sorted(set(defined)) == sorted(defined)
    assert {task["job_cluster_key"] for task in job()["tasks"]} == set(defined)


def _python_file() -> Path:
    named: str = job()["tasks"][0]["spark_python_task"]["python_file"]
    return (JOB_FILE.parent / named).resolve().relative_to(ROOT)


def test_the_python_file_is_synced_and_no_notebook() -> None:
    assert _python_file() in set(synced_files())
    assert not (ROOT / _python_file()).read_text(encoding="utf-8").startswith(_NOTEBOOK)


def test_no_synced_file_would_become_a_notebook() -> None:
    """The workspace stores a file with that first line as a notebook, without its suffix, and imports break."""
    python = [path for path in synced_files() if path.suffix == ".py"]
    assert python
    assert [path for path in python if (ROOT / path).read_text(encoding="utf-8").startswith(_NOTEBOOK)] == []


@pytest.mark.parametrize("pattern", bundle()["sync"]["exclude"])
def test_every_exclusion_matches_something(pattern: str) -> None:
    """`bundle validate --strict` refuses one that does not."""
    tracked = [path.relative_to(ROOT) for path in (ROOT / "pm_dagster").rglob("*.py")]
    assert any(matches(path, pattern) for path in tracked)


def test_what_is_synced_needs_only_what_is_synced() -> None:
    files = set(synced_files())
    modules = {".".join(path.with_suffix("").parts) for path in files if path.suffix == ".py"}
    packages = {module.removesuffix(".__init__") for module in modules}
    missing = {
        f"{path}: {name}"
        for path in files
        if path.suffix == ".py"
        for name in _imports(path)
        if name.split(".")[0] == "pm_dagster" and name not in packages and name.rpartition(".")[0] not in packages
    }
    assert missing == set()


def _imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {each.name for each in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{each.name}" for each in node.names}
    return found


def test_a_mistake_would_be_seen() -> None:
    broken = {"a": ["${var.one}/${var.two}", {"b": "${bundle.name}"}], "c": "{{secrets/x/y}}"}
    assert references(broken) == {"var.one", "var.two", "bundle.name"}
    assert bundle_files.matches(Path("pm_dagster/cli/app.py"), "pm_dagster/cli/**")
