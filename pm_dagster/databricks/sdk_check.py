"""Whether our calls and the SDK that is installed fit each other, found out before anything is sent.

Each adapter makes its calls once in each process over a connection that leads nowhere and gives known answers. Here
are those answers, the comparison, and the decision whose fault an exception is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from databricks.sdk.core import Config
from databricks.sdk.version import __version__

from pm_dagster.errors import Defect

RUN, JOB, REPAIR, TASK_RUN = 7, 3, 5, 8
#: What JSON can hold. Whatever else lacks an attribute is no part of an answer.
_OF_JSON = (dict, list, str, int, float, bool, type(None))
_STATE = {"life_cycle_state": "INTERNAL_ERROR", "result_state": "FAILED", "state_message": "it failed"}
_STATUS = {
    "state": "TERMINATED",
    "termination_details": {"code": "RUN_EXECUTION_ERROR", "type": "CLIENT_ERROR", "message": "it failed"},
    "queue_details": {"code": "MAX_CONCURRENT_RUNS_REACHED", "message": "it was queued"},
    "a field of tomorrow": {"x": [1]},
}
_TASK = {
    "task_key": "load",
    "run_id": TASK_RUN,
    "attempt_number": 1,
    "state": _STATE,
    "status": _STATUS,
    "start_time": 1_700_000_000_000,
    "end_time": 1_700_000_001_000,
    "run_if": "ALL_SUCCESS",
    "depends_on": [{"task_key": "first", "outcome": "true"}],
    "spark_python_task": {"python_file": "/a.py", "parameters": ["a"], "source": "WORKSPACE"},
    "new_cluster": {"spark_version": "16.4.x-scala2.12", "num_workers": 1, "spark_conf": {"a": "b"}},
    "libraries": [{"pypi": {"package": "a"}}],
}
_RUN = {
    "run_id": RUN,
    "job_id": JOB,
    "number_in_job": RUN,
    "run_name": "nightly",
    "run_type": "JOB_RUN",
    "trigger": "ONE_TIME",
    "state": _STATE,
    "status": _STATUS,
    "run_page_url": "https://host/#job/3/run/7",
    "start_time": 1_700_000_000_000,
    "end_time": 1_700_000_001_000,
    "creator_user_name": "somebody@example.com",
    "job_parameters": [{"name": "A", "value": "b", "default": ""}],
    "overriding_parameters": {"python_params": ["a"]},
    "cluster_spec": {"existing_cluster_id": "c"},
    "schedule": {"quartz_cron_expression": "0 0 0 * * ?", "timezone_id": "UTC", "pause_status": "PAUSED"},
    "tasks": [_TASK],
    "repair_history": [
        {"type": "ORIGINAL", "state": _STATE, "status": _STATUS, "task_run_ids": [TASK_RUN]},
        {"type": "REPAIR", "id": REPAIR, "state": _STATE, "status": _STATUS, "task_run_ids": [TASK_RUN]},
    ],
    "a field of tomorrow": {"x": [1]},
}
_SETTINGS = {
    "name": "nightly",
    "max_concurrent_runs": 1,
    "queue": {"enabled": True},
    "parameters": [{"name": "A", "default": ""}],
    "tasks": [{"task_key": "load", "notebook_task": {"notebook_path": "/a", "source": "WORKSPACE"}}],
}
_JOB = {"job_id": JOB, "creator_user_name": "somebody@example.com", "settings": _SETTINGS, "created_time": 1}
#: By the end of the path, as the Jobs API documents them: https://docs.databricks.com/api/workspace/jobs.
_ANSWERS: Mapping[str, dict[str, Any]] = {
    "/jobs/run-now": {"run_id": RUN, "number_in_job": RUN},
    "/jobs/runs/get": _RUN,
    "/jobs/runs/repair": {"repair_id": REPAIR},
    "/jobs/runs/list": {"runs": [_RUN], "has_more": False},
    "/jobs/runs/get-output": {"metadata": _RUN, "logs": "done", "error": "it failed", "logs_truncated": False},
    "/jobs/runs/cancel": {},
    "/jobs/list": {"jobs": [_JOB], "has_more": False},
    "/jobs/get": _JOB,
}


class Http(Protocol):
    """What an adapter needs of its connection."""

    _cfg: Config

    @property
    def begun(self) -> int:
        """How many requests this thread has begun to send."""

    def do(
        self,
        method: str,
        path: str | None = None,
        query: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        **more: object,
    ) -> dict[str, Any]:
        """One request, one answer."""

    def scrub(self, text: str) -> str:
        """Without secrets."""


class Canned:
    """A connection that leads nowhere and gives the answers above."""

    def __init__(self, config: Config) -> None:
        self._cfg = config

    @property
    def begun(self) -> int:
        """None is sent."""
        return 0

    def do(
        self,
        method: str,
        path: str | None = None,
        query: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        **_unused: object,
    ) -> dict[str, Any]:
        """The answer to that path."""
        del method, query, headers, body
        return next(answer for end, answer in _ANSWERS.items() if (path or "").endswith(end))

    def scrub(self, text: str) -> str:
        """As it is: there is no secret in it."""
        return text


def sdk_version() -> str:
    """The version of databricks-sdk that is installed."""
    return str(__version__)


def rehearse(*calls: tuple[Callable[[], object], object]) -> None:
    """Make each call, which must give the value beside it. Raises Defect for one that does not."""
    for call, expected in calls:
        try:
            found = call()
        except Defect:
            raise
        except Exception as error:
            raise Defect(f"{_both()}: {type(error).__name__}: {error}", maybe_applied=False) from error
        if found != expected:
            raise Defect(f"{_both()}: it reads {found!r} where the answer says {expected!r}", maybe_applied=False)


def ours(error: Exception, *, sent: bool, rehearsal: bool) -> Defect | None:
    """What to raise when an exception of the SDK or of an adapter is not about an answer; None when it may be.

    Where nothing was sent there is no answer yet. Afterwards an odd answer makes the SDK stumble in ways of its own,
    but never over a name that does not exist, or over an attribute of something that is no part of an answer.
    """
    foreign = isinstance(error, AttributeError) and not isinstance(error.obj, _OF_JSON)
    if not (rehearsal or not sent or foreign or isinstance(error, (NameError, ImportError, NotImplementedError))):
        return None
    return Defect(f"{_both()}: {type(error).__name__}: {error}", maybe_applied=sent)


def _both() -> str:
    return f"Process Manager does not fit databricks-sdk {sdk_version()}, or has a defect"
