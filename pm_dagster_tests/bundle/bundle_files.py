"""The bundle's two files as the Databricks CLI reads them, for one target.

Put here: reading, variables, which files are synced. Keep out: expectations. ``test_cli.py`` compares this with what
the real CLI makes of the same files.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
JOB_FILE = ROOT / "resources" / "tp_dp_ff_pipelines_job.yml"
JOB_KEY = "process_manager"
Json = dict[str, Any]

_REFERENCE = re.compile(r"\$\{([A-Za-z0-9_.-]+)\}")


def bundle() -> Json:
    """databricks.yml."""
    return _read(ROOT / "databricks.yml")


def job() -> Json:
    """The job as it is written, with its references."""
    resources: Json = _read(JOB_FILE)["resources"]
    assert list(resources) == ["jobs"]
    assert list(resources["jobs"]) == [JOB_KEY]
    settings: Json = resources["jobs"][JOB_KEY]
    return settings


def _read(path: Path) -> Json:
    content: Json = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content


def references(value: object) -> set[str]:
    """The names within every ``${...}`` of a value."""
    if isinstance(value, str):
        return set(_REFERENCE.findall(value))
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return {name for child in children for name in references(child)}


def job_settings(target: str, given: Mapping[str, Any], user: str) -> Json:
    """The settings that ``bundle deploy -t TARGET`` sends for the job, less what the CLI adds of its own.

    ``given`` holds variables as --var does; ``user`` is who deploys. Raises KeyError for a variable without a value.
    """
    resolver = _Resolver(target, given, user)
    settings: Json = resolver.resolve(job())
    for task in settings["tasks"]:
        file = Path(task["spark_python_task"]["python_file"])
        local = (JOB_FILE.parent / file).resolve().relative_to(ROOT)
        task["spark_python_task"]["python_file"] = f"{resolver.root_path}/files/{local.as_posix()}"
        if not task["spark_python_task"]["parameters"]:
            del task["spark_python_task"]["parameters"]
    return settings


class _Resolver:
    def __init__(self, target: str, given: Mapping[str, Any], user: str) -> None:
        whole = bundle()
        chosen = whole["targets"][target] or {}
        defaults = {name: each["default"] for name, each in whole["variables"].items() if "default" in each}
        self._variables = {**defaults, **chosen.get("variables", {}), **given}
        self._plain = {
            "bundle.name": whole["bundle"]["name"],
            "bundle.target": target,
            "workspace.current_user.userName": user,
        }
        default_root = f"/Workspace/Users/{user}/.bundle/{whole['bundle']['name']}/{target}"
        self.root_path: str = self.resolve(chosen.get("workspace", {}).get("root_path", default_root))

    def resolve(self, value: Any) -> Any:  # noqa: ANN401 any YAML
        if isinstance(value, dict):
            return {key: self.resolve(each) for key, each in value.items()}
        if isinstance(value, list):
            return [self.resolve(each) for each in value]
        if not isinstance(value, str):
            return value
        alone = _REFERENCE.fullmatch(value)
        if alone:
            return self._value(alone.group(1))
        return _REFERENCE.sub(lambda found: str(self._value(found.group(1))), value)

    def _value(self, name: str) -> Any:  # noqa: ANN401 any YAML
        kind, _, variable = name.partition(".")
        return self.resolve(self._variables[variable]) if kind == "var" else self._plain[name]


def synced_files() -> Iterator[Path]:
    """The files that a deployment uploads, relative to the root: in sync.paths, not excluded, not ignored by git."""
    sync = bundle()["sync"]
    for folder in sync["paths"]:
        for path in sorted((ROOT / folder).rglob("*")):
            relative = path.relative_to(ROOT)
            if path.is_file() and not any(matches(relative, pattern) for pattern in sync["exclude"]):
                yield from [] if is_ignored(relative) else [relative]


def matches(path: Path, pattern: str) -> bool:
    """Whether a pattern of sync.exclude covers the path."""
    return fnmatch(path.as_posix(), pattern)


def is_ignored(path: Path) -> bool:
    """Whether git ignores the path; the CLI honours .gitignore."""
    if "__pycache__" in path.parts:
        return True
    git = shutil.which("git")
    assert git, "git tells which files the CLI leaves out"
    done = subprocess.run([git, "-C", str(ROOT), "check-ignore", "-q", str(path)], check=False)
    return done.returncode == 0
