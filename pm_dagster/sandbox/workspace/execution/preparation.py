"""What a task's program is started with: file, arguments with their dynamic values put in, environment."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pm_dagster.sandbox.workspace.errors import ApiError
from pm_dagster.sandbox.workspace.model import Attempt, Json, Run, TaskRun, kind_of

_REFERENCE = re.compile(r"\{\{([^{}]+)\}\}")
_PARAMETER = re.compile(r"job\.parameters\.(?:`([^`]+)`|(\w+))")
_KNOWN = ("job.", "task.", "tasks.", "workspace.", "input.", "backfill.")


class UnknownReference(ValueError):
    """A reference that nothing stands for."""


def with_values(text: str, values: Mapping[str, str], parameters: Mapping[str, str]) -> str:
    """The text with every reference replaced.

    Args:
        text: What the job's settings hold.
        values: What each reference other than a job parameter stands for, such as ``job.id``.
        parameters: The job parameters of the run.

    Raises:
        UnknownReference: When a job parameter does not exist, or a known namespace has no such name.
    """

    def value(match: re.Match[str]) -> str:
        name = match[1]
        parameter = _PARAMETER.fullmatch(name)
        if parameter is not None:
            return _existing(parameters, parameter[1] or parameter[2], match[0])
        return _existing(values, name, match[0]) if name.startswith(_KNOWN) else match[0]

    return _REFERENCE.sub(value, text)


def _existing(values: Mapping[str, str], name: str, reference: str) -> str:
    if name not in values:
        raise UnknownReference(f"{reference} refers to nothing that the local workspace knows.")
    return values[name]


_SECRET = re.compile(r"\{\{secrets/([^/{}\s]+)/([^/{}\s]+)\}\}")
_LOOKS_LIKE_ONE = "{{secrets/"
# https://packaging.python.org/en/latest/specifications/dependency-specifiers/: what ends the name.
_NAME = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9._-]*)")


class Files(Protocol):
    """The workspace files; a path that is not there is an ApiError."""

    def real_path(self, path: str) -> Path:
        """Where the file or folder lies on disk."""
        ...


class Secrets(Protocol):
    """The secret scopes; a secret that is not there is an ApiError."""

    def get(self, scope: str, key: str) -> str:
        """The value."""
        ...


class CannotStart(Exception):
    """Something that the task needs is missing; the text names it."""


@dataclass(frozen=True)
class Program:
    """A Python file to execute; ``environment`` is what the cluster adds."""

    file: Path
    arguments: list[str]
    environment: dict[str, str]


class Preparation:
    """Turns a task into a program."""

    def __init__(self, files: Files, secrets: Secrets) -> None:
        self._files, self._secrets = files, secrets

    def program(self, run: Run, task: TaskRun) -> Program:
        """The program of a task of the run's last attempt.

        Raises:
            CannotStart: When the task is of another kind, or file, cluster, secret, library or parameter is missing.
        """
        kind = kind_of(task.settings)
        if kind != "spark_python_task":
            what = f"a {kind}" if kind else "nothing to execute"
            raise CannotStart(f"Task {task.task_key} has {what}; the local workspace executes spark_python_task only.")
        _check_libraries(task.settings.get("libraries") or [])
        specified = task.settings[kind]
        environment = self._environment(_cluster(run.last, task))
        return Program(self._file(specified), _arguments(specified, run, task), environment)

    def _file(self, specified: Json) -> Path:
        path = str(specified.get("python_file", ""))
        if specified.get("source") == "GIT":
            raise CannotStart(f"Cannot read the python file {path}: the local workspace has no Git source.")
        try:
            file = self._files.real_path(path)
        except ApiError as refusal:
            raise CannotStart(f"Cannot read the python file {path}: {refusal.message}") from None
        if not file.is_file():
            raise CannotStart(f"Cannot read the python file {path}: it is a directory.")
        return file

    def _environment(self, cluster: Json) -> dict[str, str]:
        variables = cluster.get("spark_env_vars") or {}
        return {name: self._with_secrets(name, str(value)) for name, value in variables.items()}

    def _with_secrets(self, name: str, text: str) -> str:
        if _LOOKS_LIKE_ONE in _SECRET.sub("", text):
            raise CannotStart(f"The cluster could not be started: {name} of spark_env_vars is no secret reference.")
        try:
            return _SECRET.sub(lambda match: self._secrets.get(match[1], match[2]), text)
        except ApiError as refusal:
            text = f"The cluster could not be started: {name} of spark_env_vars: {refusal.message}"
            raise CannotStart(text) from None


def _cluster(attempt: Attempt, task: TaskRun) -> Json:
    key = task.settings.get("job_cluster_key")
    if key is None:
        return dict(task.settings.get("new_cluster") or {})
    for each in (attempt.settings or {}).get("job_clusters") or []:
        if each.get("job_cluster_key") == key:
            return dict(each.get("new_cluster") or {})
    raise CannotStart(f"The cluster could not be started: the job defines no job cluster {key}.")


def _arguments(specified: Json, run: Run, task: TaskRun) -> list[str]:
    given = run.last.python_params
    values = {
        "job.id": str(run.job_id),
        "job.name": run.name,
        "job.run_id": str(run.run_id),
        "job.repair_count": str(len(run.attempts) - 1),
        "task.name": task.task_key,
        "task.run_id": str(task.run_id),
    }
    try:
        texts = specified.get("parameters") or [] if given is None else given
        return [with_values(str(text), values, _parameters(run)) for text in texts]
    except UnknownReference as error:
        raise CannotStart(f"The parameters of task {task.task_key} could not be resolved: {error}") from None


def _parameters(run: Run) -> Mapping[str, str]:
    declared = (run.last.settings or {}).get("parameters") or []
    return {**{str(each["name"]): str(each.get("default", "")) for each in declared}, **run.parameters}


def _check_libraries(libraries: list[Json]) -> None:
    for library in libraries:
        package = (library.get("pypi") or {}).get("package")
        name = _NAME.match(str(package or ""))
        if name is None:
            raise CannotStart(f"Library {library} cannot be installed by the local workspace; it has pypi only.")
        try:
            importlib.metadata.distribution(name[1])
        except importlib.metadata.PackageNotFoundError:
            text = f"Library {package} could not be installed: the local workspace's Python does not have {name[1]}."
            raise CannotStart(text) from None
