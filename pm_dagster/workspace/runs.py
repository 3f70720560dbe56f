"""The DatabricksRuns port over the official SDK.

Works with databricks-sdk 0.30 (API 2.1, the cluster's) to 0.60 (API 2.2): only fields that both know are used.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime
from enum import Enum
from typing import Any, TypeVar
from urllib.parse import urlsplit

from databricks.sdk import WorkspaceClient
from databricks.sdk.service.jobs import JobsAPI, QueueSettings, Run

from pm_dagster.core.errors import AuthenticationFailed, ProcessManagerError, Refused, WorkspaceUnavailable
from pm_dagster.core.run_state import RunSnapshot
from pm_dagster.core.settings import Settings
from pm_dagster.workspace.transport import OneAttempt

T = TypeVar("T")
_AZURE_HOST = re.compile(r"^adb-(\d+)\.\d+\.")
_FORBIDDEN = 403
#: The one refusal whose text decides: runs/get says 400 for a run that is gone, and has no code of its own for it
#: (databricks-sdk 0.60 errors/overrides.py does the same).
_RUN_IS_GONE = re.compile(r"Run:? .*(does not exist|doesn't exist)")


class SdkRuns:
    """See ``pm_dagster.core.ports.DatabricksRuns``. ``client`` brings host and credentials; thread-safe."""

    def __init__(self, client: WorkspaceClient, settings: Settings) -> None:
        self._config = client.config
        self._http = OneAttempt(client.config, settings.http_timeout_seconds)
        # The SDK's constructor has no types; all it asks of its client is ``do``.
        build: Callable[[OneAttempt], JobsAPI] = JobsAPI
        self._jobs = build(self._http)
        self._queue = QueueSettings(enabled=True) if settings.queue else None

    def start(self, job_id: int, parameters: Mapping[str, str], idempotency_token: str) -> int:
        """run-now."""

        def call() -> object:
            wait: Any = self._jobs.run_now(
                job_id, idempotency_token=idempotency_token, job_parameters=dict(parameters), queue=self._queue
            )
            return wait.response.run_id

        return _identifier(self._guarded(call), "run-now", "run_id")

    def look_up(self, run_id: int) -> RunSnapshot:
        """runs/get with history, all pages."""
        pages = [self._page(run_id, None)]
        while token := getattr(pages[-1], "next_page_token", None):
            pages.append(self._page(run_id, token))
        return _snapshot(run_id, pages)

    def _page(self, run_id: int, token: str | None) -> Run:
        try:
            # The SDK's mixin would follow the pages by itself; the plain class takes one page a call.
            return self._guarded(lambda: self._jobs.get_run(run_id, include_history=True, page_token=token))
        except Refused as error:
            gone = error.gone or bool(_RUN_IS_GONE.search(str(error)))
            raise Refused(str(error), status=error.status, error_code=error.error_code, gone=gone) from None

    def repair(self, run_id: int, parameters: Mapping[str, str], latest_repair_id: int | None) -> int:
        """runs/repair of all failed tasks."""

        def call() -> object:
            wait: Any = self._jobs.repair_run(
                run_id,
                rerun_all_failed_tasks=True,
                job_parameters=dict(parameters),
                latest_repair_id=latest_repair_id,
            )
            return wait.response.repair_id

        return _identifier(self._guarded(call), "repair", "repair_id")

    def find_started(self, job_id: int, since: datetime, parameters: Mapping[str, str]) -> int | None:
        """runs/list from a minute before ``since`` (clocks differ), newest first."""
        from_ms = max(0, int(since.timestamp() * 1000) - 60_000)

        def call() -> int | None:
            for run in self._jobs.list_runs(job_id=job_id, start_time_from=from_ms):
                given = {item.name: item.value for item in run.job_parameters or []}
                if run.run_id and all(given.get(name) == value for name, value in parameters.items()):
                    return run.run_id
            return None

        return self._guarded(call)

    def page_url(self, job_id: int, run_id: int) -> str:
        """The link to the run's page, with the workspace id where the host name tells it."""
        host = (self._config.host or "").rstrip("/")
        workspace = _AZURE_HOST.match(urlsplit(host).netloc)
        return f"{host}/jobs/{job_id}/runs/{run_id}" + (f"?o={workspace.group(1)}" if workspace else "")

    def scrub(self, text: str) -> str:
        """``text`` without any secret of this connection."""
        return self._http.scrub(text)

    def check(self) -> str:
        """The name of the user or service principal that the workspace takes us for."""
        answer = self._http.do("GET", "/api/2.0/preview/scim/v2/Me")
        return str(answer.get("userName") or answer.get("displayName") or answer.get("id"))

    def job_name(self, job_id: int) -> str:
        """The name of a job. Raises Refused when it does not exist or may not be seen."""
        job = self._guarded(lambda: self._jobs.get(job_id))
        return str(job.settings.name if job.settings else job_id)

    def _guarded(self, call: Callable[[], T]) -> T:
        """Only our errors leave: the SDK's classes stumble over answers of the wrong form in their own ways."""
        try:
            return call()
        except Refused as error:
            if error.status == _FORBIDDEN and self._credentials_refused():
                raise AuthenticationFailed(str(error), status=error.status) from None
            raise
        except ProcessManagerError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            message = self.scrub(f"the workspace's answer lacks or garbles a field ({type(error).__name__}: {error})")
            raise WorkspaceUnavailable(message[:500], status=200) from None

    def _credentials_refused(self) -> bool:
        """A 403 may be about one job, or about us altogether (an invalid token, an address that is not allowed)."""
        try:
            self.check()
        except AuthenticationFailed:
            return True
        except Refused as error:
            return error.status == _FORBIDDEN
        except ProcessManagerError:
            return False
        return False


def _identifier(value: object, call: str, name: str) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    message = f"the workspace answered 200 to {call} without a usable {name}"
    raise WorkspaceUnavailable(message, status=200)


def _word(value: object) -> str | None:
    return str(value.value) if isinstance(value, Enum) else None


def _snapshot(run_id: int, pages: list[Run]) -> RunSnapshot:
    first: Any = pages[0]
    status = getattr(first, "status", None)
    details = getattr(status, "termination_details", None)
    history = [item for page in pages for item in page.repair_history or []]
    return RunSnapshot(
        run_id=run_id,
        job_id=first.job_id,
        life_cycle_state=_word(getattr(first.state, "life_cycle_state", None)),
        result_state=_word(getattr(first.state, "result_state", None)),
        status_state=_word(getattr(status, "state", None)),
        termination_code=_word(getattr(details, "code", None)),
        message=getattr(first.state, "state_message", None) or "",
        repair_ids=tuple(item.id for item in history if item.id and _word(item.type) != "ORIGINAL"),
        page_url=first.run_page_url,
    )
