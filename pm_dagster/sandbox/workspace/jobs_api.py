"""The calls on jobs: create, get, list, update, reset, delete."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pm_dagster.sandbox.workspace import views
from pm_dagster.sandbox.workspace.call import Call, Reply
from pm_dagster.sandbox.workspace.errors import invalid, malformed
from pm_dagster.sandbox.workspace.model import Job, Json
from pm_dagster.sandbox.workspace.state import WorkspaceState

_PAGE = 100
_MOST_CONCURRENT = 1000
_JOB_SHAPES: Mapping[str, type] = {"timeout_seconds": int, "job_clusters": list}
_TASK_SHAPES: Mapping[str, type] = {
    "timeout_seconds": int, "depends_on": list, "libraries": list, "new_cluster": dict, "spark_python_task": dict,
}  # fmt: skip


class JobsApi:
    """The handlers over one state."""

    def __init__(self, state: WorkspaceState) -> None:
        self._state = state

    def create(self, call: Call) -> Reply:
        """Define a job; only version 2.2 switches its queue on by default."""
        check_settings(call.body)
        job = self._state.create_job(call.body, queue_default=call.version == "2.2")
        return Reply({"job_id": job.job_id}, effect=True)

    def get(self, call: Call) -> Reply:
        """One job."""
        job_id = call.number("job_id")
        return Reply(views.job_view(self._state.job(job_id, self._state.switches.unknown_job_status)))

    def list_jobs(self, call: Call) -> Reply:
        """Jobs by page, newest first, by name if one is given."""
        limit = call.number("limit", 20)
        if not 1 <= limit <= _PAGE:
            raise invalid("limit must be between 1 and 100.")
        name = call.text("name")
        jobs = [job for job in self._state.jobs() if name is None or job.name.casefold() == name.casefold()]
        page, following = views.after_key(jobs, _key, call.text("page_token"), limit)
        body: Json = {"jobs": [views.job_view(job, whole=call.flag("expand_tasks")) for job in page]} if page else {}
        if following:
            body["next_page_token"] = following
        if call.version != "2.2":
            body["has_more"] = bool(following)
        return Reply(body)

    def update(self, call: Call) -> Reply:
        """Change some settings."""
        job = self._state.job(call.number("job_id"))
        fresh = {**job.settings, **_settings(call)}
        for name in call.keys("fields_to_remove"):
            fresh.pop(name, None)
        self._state.change_job(job.job_id, fresh)
        return Reply(effect=True)

    def reset(self, call: Call) -> Reply:
        """Replace all settings."""
        fresh = _settings(call)
        self._state.change_job(call.number("job_id"), fresh)
        return Reply(effect=True)

    def delete(self, call: Call) -> Reply:
        """Remove a job."""
        self._state.delete_job(call.number("job_id"))
        return Reply(effect=True)


def _key(job: Job) -> views.Key:
    return job.created, job.job_id


def _settings(call: Call) -> Json:
    settings = call.body.get("new_settings") or {}
    if not isinstance(settings, dict):
        raise malformed("Expected object for field new_settings.")
    check_settings(settings)
    return settings


def check_settings(settings: Json) -> None:
    """Refuse settings that the workspace could not work with."""
    limit = settings.get("max_concurrent_runs", 1)
    if isinstance(limit, bool) or not isinstance(limit, int) or not 0 <= limit <= _MOST_CONCURRENT:
        raise invalid("max_concurrent_runs must be between 0 and 1000.")
    if not isinstance(settings.get("name", ""), str) or not isinstance(settings.get("queue") or {}, dict):
        raise malformed("Expected a STRING for field name and an object for field queue.")
    _check_lists(settings, ("tasks", "parameters", "job_clusters"))
    _check_shapes(settings, _JOB_SHAPES)
    for cluster in settings.get("job_clusters") or []:
        _check_shapes(cluster, {"new_cluster": dict})
    _check_tasks(settings)


def _check_lists(settings: Json, names: Sequence[str]) -> None:
    for name in names:
        items = settings.get(name) or []
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise malformed(f"Expected array of objects for field {name}.")


def _check_shapes(settings: Json, shapes: Mapping[str, type]) -> None:
    for name, shape in shapes.items():
        value = settings.get(name)
        if value is not None and (not isinstance(value, shape) or isinstance(value, bool)):
            raise malformed(f"Field {name} has the wrong type.")


def _check_tasks(settings: Json) -> None:
    for task in settings.get("tasks") or []:
        _check_shapes(task, _TASK_SHAPES)
        _check_lists(task, ("libraries",))
        for library in task.get("libraries") or []:
            _check_shapes(library, {"pypi": dict})
    keys = [task.get("task_key") for task in settings.get("tasks") or []]
    if not all(isinstance(key, str) and key for key in keys) or len(set(keys)) < len(keys):
        raise invalid("Every task needs a task_key of its own.")
    if not all(isinstance(each.get("name"), str) for each in settings.get("parameters") or []):
        raise invalid("Every parameter needs a name.")
    for task in settings.get("tasks") or []:
        for each in task.get("depends_on") or []:
            if not isinstance(each, dict) or each.get("task_key") not in keys:
                raise invalid(f"Task {task['task_key']} depends on a task that does not exist.")
