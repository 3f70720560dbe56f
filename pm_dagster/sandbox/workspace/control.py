"""The calls that steer the sandbox itself, under /sandbox: GET reads, POST changes, both behind the same token.

A wrong field is a 400 that names it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from pm_dagster.sandbox.workspace import answers, request_log
from pm_dagster.sandbox.workspace.call import Call, body_of
from pm_dagster.sandbox.workspace.errors import ApiError
from pm_dagster.sandbox.workspace.gate import Parts, bearer
from pm_dagster.sandbox.workspace.jobs_api import check_settings
from pm_dagster.sandbox.workspace.model import Json, to_record
from pm_dagster.sandbox.workspace.views import Lens

Action = Callable[[Json], Json]


class Control:
    """The control calls over the parts of a workspace."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def routes(self) -> list[Route]:
        """The routes: path, what GET answers, what POST does."""
        table: list[tuple[str, Action | None, Action | None]] = [
            ("jobs", self._jobs, self._add_job),
            ("jobs/delete", None, self._delete_job),
            ("jobs/forbid", None, self._forbid),
            ("runs", self._runs, self._add_run),
            ("runs/delete", None, self._delete_run),
            ("runs/finish", None, self._finish),
            ("faults", self._faults, self._add_fault),
            ("faults/clear", None, self._clear_faults),
            ("limits", self._limits, self._set_limits),
            ("switches", self._switches, self._set_switches),
            ("log", self._log, None),
            ("log/clear", None, self._clear_log),
            ("reset", None, self._reset),
        ]
        return [
            Route(f"/sandbox/{path}", self._endpoint(read, change), methods=["GET", "POST"])
            for path, read, change in table
        ]

    def _endpoint(self, read: Action | None, change: Action | None) -> Callable[[Request], Any]:
        async def endpoint(request: Request) -> Response:
            answer = self._answer(request, await request.body(), read, change)
            return Response(answer.body, answer.status, answer.headers)

        return endpoint

    def _answer(self, request: Request, raw: bytes, read: Action | None, change: Action | None) -> answers.Answer:
        try:
            self._check_token(request)
            if request.method == "POST":
                return answers.ok(_offered(change)(body_of(raw)))
            return answers.ok(_offered(read)(dict(request.query_params)))
        except ApiError as refusal:
            return answers.refusal(refusal)
        except (TypeError, ValueError, KeyError) as error:
            return answers.refusal(ApiError(400, "INVALID_PARAMETER_VALUE", str(error)))
        finally:
            self._parts.state.flush()

    def _check_token(self, request: Request) -> None:
        if not self._parts.tokens.accepts(bearer(request)):
            raise ApiError(401, "UNAUTHORIZED", "Send the workspace's token as bearer.")

    def _call(self, values: Json) -> Call:
        return Call("2.2", {}, values, Lens("", self._parts.switches))

    def _jobs(self, _: Json) -> Json:
        return {"jobs": [to_record(job) for job in self._parts.state.jobs()]}

    def _add_job(self, values: Json) -> Json:
        job_id = self._call(values).optional_number("job_id")
        seconds, pending = values.get("seconds", 1.0), values.get("pending_seconds", 0.0)
        if any(isinstance(each, bool) or not isinstance(each, (int, float)) for each in (seconds or 0, pending)):
            raise ValueError("seconds and pending_seconds are numbers; seconds may be null")
        queue = values.get("queue")
        check_settings({**values, "queue": {"enabled": queue} if isinstance(queue, bool) else queue})
        return to_record(self._parts.state.add_job(**{**values, "job_id": job_id}))

    def _delete_job(self, values: Json) -> Json:
        self._parts.state.delete_job(self._call(values).number("job_id"))
        return {}

    def _forbid(self, values: Json) -> Json:
        self._parts.state.forbid(self._call(values).number("job_id"), forbidden=bool(values.get("forbidden", True)))
        return {}

    def _runs(self, values: Json) -> Json:
        with self._parts.state.locked():
            runs = self._parts.state.runs(self._call(values).optional_number("job_id"))
            return {"runs": [to_record(run) for run in runs]}

    def _add_run(self, values: Json) -> Json:
        call = self._call(values)
        numbers = {"job_id": call.number("job_id"), "run_id": call.optional_number("run_id")}
        run = self._parts.state.add_run(**{**values, **numbers, "repairs": call.number("repairs", 0)})
        return {"run_id": run.run_id, "latest_repair_id": run.latest_repair_id}

    def _delete_run(self, values: Json) -> Json:
        self._parts.state.delete_run(self._call(values).number("run_id"))
        return {}

    def _finish(self, values: Json) -> Json:
        self._parts.state.finish(self._call(values).number("run_id"), str(values.get("outcome", "succeed")))
        return {}

    def _faults(self, _: Json) -> Json:
        return {"faults": self._parts.faults.rules()}

    def _add_fault(self, values: Json) -> Json:
        return asdict(self._parts.faults.add(**values))

    def _clear_faults(self, _: Json) -> Json:
        self._parts.faults.clear()
        return {}

    def _limits(self, _: Json) -> Json:
        return {"rates": self._parts.limits.rates, "retry_after": self._parts.limits.retry_after}

    def _set_limits(self, values: Json) -> Json:
        if values.get("preset") == "documented":
            self._parts.limits.use_documented(values.get("retry_after"))
        else:
            self._parts.limits.set(values.get("rates") or {}, values.get("retry_after"))
        return self._limits({})

    def _switches(self, _: Json) -> Json:
        return self._parts.switches.describe()

    def _set_switches(self, values: Json) -> Json:
        self._parts.switches.set(**values)
        return self._switches({})

    def _log(self, values: Json) -> Json:
        effect = {"true": True, "false": False}.get(str(values.get("effect")))
        found = self._parts.log.entries(values.get("endpoint"), effect=effect, after=int(values.get("after", 0)))
        return {"requests": [request_log.to_json(entry) for entry in found]}

    def _clear_log(self, _: Json) -> Json:
        self._parts.log.clear()
        return {}

    def _reset(self, _: Json) -> Json:
        self._parts.reset()
        return {}


def _offered(action: Action | None) -> Action:
    if action is None:
        raise ApiError(405, "METHOD_NOT_ALLOWED", "GET reads, POST changes.")
    return action
