"""The DatabricksRuns port over the official SDK.

Works with databricks-sdk from 0.30 (API 2.1, the cluster's) to the newest (API 2.2): only what all know is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

from databricks.sdk.core import Config
from databricks.sdk.service.jobs import JobsAPI, QueueSettings, Run

from pm_dagster.config.settings import Settings
from pm_dagster.databricks import sdk_check
from pm_dagster.databricks.jobs_service import JobsService, OnePage, Pages, identifier, jobs_api, snapshot, word
from pm_dagster.databricks.sdk_check import Http
from pm_dagster.dispatch.model import MorePages, RunSnapshot, Standing, read_whole
from pm_dagster.errors import WorkspaceUnavailable


class SdkRuns(JobsService):
    """See ``pm_dagster.dispatch.ports.DatabricksRuns``. ``config`` has host and credentials; thread-safe."""

    def __init__(self, config: Config, settings: Settings, http: Http | None = None) -> None:
        self._queue = QueueSettings(enabled=True) if settings.queue else None
        super().__init__(config, settings, http)

    def rehearse(self) -> None:
        """See ``sdk_check``."""
        since, parameters = datetime.fromtimestamp(1, UTC), {"A": "b"}
        sdk_check.rehearse(
            (lambda: self.start(sdk_check.JOB, parameters, "token"), sdk_check.RUN),
            (lambda: self.repair(sdk_check.RUN, parameters, None), sdk_check.REPAIR),
            (lambda: read_whole(self.find_started(sdk_check.JOB, since, parameters)), [sdk_check.RUN]),
            (lambda: self.job_name(sdk_check.JOB), "nightly"),
            (lambda: read_whole(self.look_up(sdk_check.RUN)).standing, Standing.REPAIRABLE),
            (lambda: read_whole(self.look_up(sdk_check.RUN)).repair_ids, (sdk_check.REPAIR,)),
            (lambda: read_whole(self.look_up(sdk_check.RUN)).message, "it failed"),
        )

    def start(self, job_id: int, parameters: Mapping[str, str], idempotency_token: str) -> int:
        """run-now."""

        def call() -> object:
            wait: Any = self._jobs.run_now(
                job_id, idempotency_token=idempotency_token, job_parameters=dict(parameters), queue=self._queue
            )
            return wait.response.run_id

        return identifier(self._guarded(call), "run-now", "run_id")

    def look_up(self, run_id: int) -> RunSnapshot | MorePages[RunSnapshot]:
        """runs/get with history, page by page.

        An answer without any state is no answer: unlike a state that we do not know, it is no sign that the run is
        under way, and who takes it for that marks a row as scheduled for which nothing runs.
        """
        return self._look_up(self._paged(), run_id, (), None)

    def _look_up(
        self, jobs: JobsAPI, run_id: int, before: tuple[Run, ...], token: str | None
    ) -> RunSnapshot | MorePages[RunSnapshot]:
        """One more page of the history."""
        pages = (*before, self._page(jobs, run_id, token, True))
        if pages[0].state is None and getattr(pages[0], "status", None) is None:
            raise WorkspaceUnavailable("the workspace answered 200 to runs/get without the run's state", status=200)
        if token := getattr(pages[-1], "next_page_token", None):
            return MorePages(partial(self._look_up, jobs, run_id, pages, token))

        def read() -> RunSnapshot:
            history = [item for page in pages for item in page.repair_history or []]
            repairs = [item.id for item in history if item.id and word(item.type) != "ORIGINAL"]
            ids = tuple(identifier(each, "runs/get", "id of a repair") for each in repairs)
            return self._without_secrets(snapshot(run_id, pages[0], ids))

        return self._guarded(read, answered=True)

    def _without_secrets(self, run: RunSnapshot) -> RunSnapshot:
        """What is kept of a run is handed on and stored; a link that holds a secret leads nowhere without it."""
        url = run.page_url if isinstance(run.page_url, str) and self.scrub(run.page_url) == run.page_url else None
        return replace(run, message=self.scrub(run.message), page_url=url)

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

        return identifier(self._guarded(call), "repair", "repair_id")

    def find_started(
        self, job_id: int, since: datetime, parameters: Mapping[str, str]
    ) -> list[int] | MorePages[list[int]]:
        """runs/list from a minute before ``since`` (clocks differ), newest first, page by page."""
        from_ms = max(0, int(since.timestamp() * 1000) - 60_000)
        return self._find(Pages(self._http), (job_id, from_ms), parameters, (), None)

    def _find(
        self,
        pages: Pages,
        asked: tuple[int, int],
        parameters: Mapping[str, str],
        before: tuple[int, ...],
        token: str | None,
    ) -> list[int] | MorePages[list[int]]:
        """One more page of the list of a job's runs from a moment on."""
        page = OnePage(pages)
        job_id, from_ms = asked

        def call() -> list[int]:
            found = list(before)
            for run in jobs_api(page).list_runs(job_id=job_id, start_time_from=from_ms, page_token=token):
                given = {item.name: item.value for item in run.job_parameters or []}
                if run.run_id and all(given.get(name) == value for name, value in parameters.items()):
                    found.append(identifier(run.run_id, "runs/list", "run_id"))
            return found

        found = self._guarded(call)
        if page.next_token:
            return MorePages(partial(self._find, pages, asked, parameters, tuple(found), page.next_token))
        return found

    def job_name(self, job_id: int) -> str:
        """The name of a job. Raises Refused when it does not exist or may not be seen."""
        job = self._guarded(lambda: self._jobs.get(job_id))
        return str(job.settings.name if job.settings else job_id)
