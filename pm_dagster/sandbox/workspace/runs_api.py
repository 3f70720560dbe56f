"""The calls on runs: run-now, repair, get, list, cancel, delete, get-output.

When a run may be repaired is in ``attempts.py``.
"""

from __future__ import annotations

import json

from pm_dagster.sandbox.workspace import views
from pm_dagster.sandbox.workspace.attempts import RepairRequest
from pm_dagster.sandbox.workspace.call import Call, Reply
from pm_dagster.sandbox.workspace.errors import invalid, malformed
from pm_dagster.sandbox.workspace.model import Attempt, Json, Run, TaskRun
from pm_dagster.sandbox.workspace.state import WorkspaceState

_PAGE = 100
_LIST_PAGE = 25
_LONGEST_TOKEN = 64
_LARGEST_PARAMS = 10_000


class RunsApi:
    """The handlers over one state; it counts the reads that make a repair visible when the history lags."""

    def __init__(self, state: WorkspaceState) -> None:
        self._state = state
        self._reads: dict[int, int] = {}

    def run_now(self, call: Call) -> Reply:
        """Start a run, or give the one that the token began."""
        token = call.text("idempotency_token")
        if token is not None and len(token) > _LONGEST_TOKEN:
            raise invalid("idempotency_token must be at most 64 characters.")
        queue = call.body.get("queue")
        if queue is not None and not isinstance(queue, dict):
            raise malformed("Expected object for field queue.")
        enabled = None if not queue or "enabled" not in queue else bool(queue["enabled"])
        run, new = self._state.start_run(
            call.number("job_id"),
            call.texts("job_parameters"),
            token,
            queue=enabled,
            python_params=_python_params(call),
            only=call.keys("only"),
        )
        return Reply({"run_id": run.run_id, "number_in_job": run.run_id}, effect=new)

    def repair(self, call: Call) -> Reply:
        """Run failed or chosen tasks of a run again."""
        request = RepairRequest(
            run_id=call.number("run_id"),
            latest_repair_id=call.optional_number("latest_repair_id"),
            rerun_tasks=call.keys("rerun_tasks"),
            rerun_all_failed_tasks=call.flag("rerun_all_failed_tasks"),
            rerun_dependent_tasks=call.flag("rerun_dependent_tasks"),
            parameters=call.texts("job_parameters"),
            python_params=_python_params(call),
        )
        return Reply({"repair_id": self._state.repair(request)}, effect=True)

    def get(self, call: Call) -> Reply:
        """One run, its arrays by pages of 100 in version 2.2; a task run's id gives the task run."""
        run_id = call.number("run_id")
        with self._state.locked():
            owner = self._state.run_of_task(run_id)
            if owner is not None:
                return Reply(_task_record(owner, run_id, call))
            run = self._state.run(run_id)
            attempts = self._visible(run)
            body = views.run_view(run, self._state.job_of(run), call.lens, attempts)
            tasks = [views.task_view(task, run, call.lens) for each in attempts for task in each.tasks]
            arrays: dict[str, list[Json]] = {"tasks": tasks, "job_parameters": body["job_parameters"]}
            if call.flag("include_history") and not call.lens.switches.history_missing:
                arrays["repair_history"] = views.history_view(run, self._listed(attempts), call.lens)
        if call.version != "2.2":
            return Reply(body | arrays)
        first = views.position_of(call.text("page_token"))
        body |= {name: items[first : first + _PAGE] for name, items in arrays.items()}
        if any(len(items) > first + _PAGE for items in arrays.values()):
            body["next_page_token"] = views.position_token(first + _PAGE)
        return Reply(body)

    def list_runs(self, call: Call) -> Reply:
        """Runs by page, newest start first."""
        limit = call.number("limit", 20) or _LIST_PAGE
        if not 1 <= limit <= _LIST_PAGE:
            raise invalid("limit must be between 0 and 25.")
        runs = self._filtered(call)
        page, following = views.after_key(runs, _key, call.text("page_token"), limit)
        with self._state.locked():
            views_ = [self._listed_view(run, call) for run in page]
        body: Json = {"runs": views_} if views_ else {}
        if following:
            body["next_page_token"] = following
        if call.version != "2.2":
            body["has_more"] = bool(following)
        return Reply(body)

    def cancel(self, call: Call) -> Reply:
        """Ask a run to end; asking again changes nothing."""
        return Reply(effect=self._state.cancel(call.number("run_id")))

    def delete(self, call: Call) -> Reply:
        """Remove a run that is over."""
        run = self._state.run(call.number("run_id"))
        if run.last.active:
            raise invalid(f"Run {run.run_id} is active and cannot be deleted.")
        self._state.delete_run(run.run_id)
        return Reply(effect=True)

    def get_output(self, call: Call) -> Reply:
        """What a task run left behind."""
        run_id = call.number("run_id")
        with self._state.locked():
            run = self._state.run_of_task(run_id)
            if run is None:
                self._state.run(run_id)
                raise invalid("Retrieving the output of runs with multiple tasks is not supported.")
            metadata, task = _task_record(run, run_id, call), _task_run(run, run_id)
            logs, cut = self._state.output(run_id)
        body: Json = {"metadata": metadata, "logs": logs, "logs_truncated": cut}
        if task.result == "FAILED":
            error = task.error or "The sandbox's script made this task fail."
            body |= {"error": error, "error_trace": task.error_trace}
        return Reply(body)

    def _filtered(self, call: Call) -> list[Run]:
        active, completed = call.flag("active_only"), call.flag("completed_only")
        if active and completed:
            raise invalid("Only one of active_only and completed_only can be true.")
        since, until = call.number("start_time_from", 0), call.number("start_time_to", 2**63 - 1)
        with self._state.locked():
            return [
                run
                for run in self._state.runs(call.optional_number("job_id"))
                if not (active and not run.last.active)
                and not (completed and run.last.active)
                and since <= views.millis(run.created) <= until
            ]

    def _listed_view(self, run: Run, call: Call) -> Json:
        view = views.run_view(run, self._state.job_of(run), call.lens, run.attempts)
        if call.flag("expand_tasks"):
            tasks = [views.task_view(task, run, call.lens) for each in run.attempts for task in each.tasks]
            view |= {"tasks": tasks[:_PAGE], "has_more": len(tasks) > _PAGE}
        return view

    def _visible(self, run: Run) -> list[Attempt]:
        if self._state.switches.stale_scope == "run":
            return self._fresh_enough(run.attempts)
        return run.attempts

    def _listed(self, attempts: list[Attempt]) -> list[Attempt]:
        if self._state.switches.stale_scope == "history":
            return self._fresh_enough(attempts)
        return attempts

    def _fresh_enough(self, attempts: list[Attempt]) -> list[Attempt]:
        repair_id = attempts[-1].repair_id
        if repair_id is None:
            return attempts
        reads = self._reads.get(repair_id, 0)
        switches = self._state.switches
        if switches.history_lag_reads > reads:
            self._reads[repair_id] = reads + 1
            return attempts[:-1]
        if self._state.clock() - attempts[-1].start < switches.history_lag_seconds:
            return attempts[:-1]
        return attempts


def _key(run: Run) -> views.Key:
    return run.created, run.run_id


def _python_params(call: Call) -> list[str] | None:
    """The parameters of Python tasks, within their documented limits (databricks-sdk 0.60, ``RunNow``)."""
    given = call.keys("python_params")
    if not all(each.isascii() for each in given):
        raise invalid("python_params may hold ASCII characters only.")
    if len(json.dumps({"python_params": given})) > _LARGEST_PARAMS:
        raise invalid(f"python_params must not exceed {_LARGEST_PARAMS} bytes.")
    return given or None


def _task_run(run: Run, run_id: int) -> TaskRun:
    return next(task for attempt in run.attempts for task in attempt.tasks if task.run_id == run_id)


def _task_record(run: Run, run_id: int, call: Call) -> Json:
    task = _task_run(run, run_id)
    shared = {"job_id": run.job_id, "job_run_id": run.run_id, "parent_run_id": run.run_id, "run_name": run.name}
    return {**shared, "run_type": "JOB_RUN", **views.task_view(task, run, call.lens)}
