"""What both adapters over the Jobs API share: the connection, reading page by page, and which errors may leave.

The single calls are in ``runs`` (what a dispatch asks) and ``deployed_jobs`` (what the launcher asks).
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, ClassVar, TypeVar
from urllib.parse import urlsplit

from databricks.sdk.core import Config
from databricks.sdk.service.jobs import JobsAPI, Run

from pm_dagster.config.settings import Settings
from pm_dagster.databricks.sdk_check import Canned, Http, ours, sdk_version
from pm_dagster.databricks.transport import OneAttempt
from pm_dagster.dispatch.model import RunSnapshot
from pm_dagster.dispatch.waiting_job import INT64_MAX
from pm_dagster.errors import (
    AuthenticationFailed,
    Defect,
    ProcessManagerError,
    Refused,
    Unavailable,
    WorkspaceUnavailable,
)

T = TypeVar("T")
_AZURE_HOST = re.compile(r"^adb-(\d+)\.\d+\.")
_FORBIDDEN = 403
#: At 25 runs a page, what a job starts in hours at the highest rate that the Jobs API takes.
_MOST_PAGES = 10_000
_LONGEST_READING_SECONDS = 120.0
#: What anybody with valid credentials may ask. The list holds only the jobs that the caller may see, perhaps none:
#: https://docs.databricks.com/api/workspace/jobs/list. Not every workspace has the first.
_ME = ("/api/2.0/preview/scim/v2/Me",)
_ANY_JOBS = ("/api/2.1/jobs/list", {"limit": 1})


class JobsService:
    """The Jobs API of one workspace. ``config`` has host and credentials; thread-safe.

    Raises Defect when the calls do not fit the SDK that is installed: they are rehearsed once in each process, and only
    ``http`` of the rehearsal is given.
    """

    _rehearsed: ClassVar[set[type]] = set()

    def __init__(self, config: Config, settings: Settings, http: Http | None = None) -> None:
        self._config = config
        self._http = OneAttempt(config, settings.http_timeout_seconds) if http is None else http
        self._jobs = jobs_api(self._http)
        if http is None and type(self) not in self._rehearsed:
            type(self)(config, settings, Canned(config)).rehearse()
            self._rehearsed.add(type(self))

    def rehearse(self) -> None:
        """Make each call with answers that are known; see ``sdk_check``."""

    def page_url(self, job_id: int, run_id: int) -> str:
        """The link to the run's page, with the workspace id where the host name tells it."""
        host = (self._config.host or "").rstrip("/")
        workspace = _AZURE_HOST.match(urlsplit(host).netloc)
        return f"{host}/jobs/{job_id}/runs/{run_id}" + (f"?o={workspace.group(1)}" if workspace else "")

    @property
    def workspace(self) -> str:
        """The name of the workspace's host, in lower case."""
        return urlsplit(self._config.host or "").netloc.lower()

    def scrub(self, text: str) -> str:
        """``text`` without any secret of this connection."""
        return self._http.scrub(text)

    def check(self) -> str:
        """The name of the user or service principal that the workspace takes us for."""
        answer = self._http.do("GET", *_ME)
        return str(answer.get("userName") or answer.get("displayName") or answer.get("id"))

    def _paged(self) -> JobsAPI:
        """The Jobs API for one reading of several pages, which ends even if the pages do not."""
        return jobs_api(Pages(self._http))

    def _pages(self, run_id: int, *, include_history: bool) -> list[Run]:
        """runs/get, all pages. Raises Refused with ``gone`` when the run does not exist."""
        jobs = self._paged()
        pages = [self._page(jobs, run_id, None, include_history)]
        while token := getattr(pages[-1], "next_page_token", None):
            pages.append(self._page(jobs, run_id, token, include_history))
        return pages

    def _page(self, jobs: JobsAPI, run_id: int, token: str | None, include_history: bool) -> Run:  # noqa: FBT001 handed on by _pages
        # The SDK's mixin would follow the pages by itself; the plain class takes one page a call.
        page = self._guarded(lambda: jobs.get_run(run_id, include_history=include_history, page_token=token))
        if token is None and identifier(page.run_id, "runs/get", "run_id") != run_id:
            raise WorkspaceUnavailable("the workspace answered 200 to runs/get with another run", status=200)
        return page

    def _guarded(self, call: Callable[[], T], *, answered: bool = False) -> T:
        """Only our errors leave: the SDK's classes stumble over answers of the wrong form in their own ways.

        What stumbles over no answer is our side's fault and leaves as Defect. ``answered``: the call only reads what
        came before.
        """
        before = self._http.begun
        try:
            return call()
        except Refused as error:
            if error.status == _FORBIDDEN:
                self._check_credentials(error)
            raise
        except ProcessManagerError:
            raise
        except Exception as error:
            # There is no telling which, and one odd answer must not stop the others.
            sent, rehearsal = answered or self._http.begun > before, isinstance(self._http, Canned)
            if defect := ours(error, sent=sent, rehearsal=rehearsal):
                raise Defect(self.scrub(str(defect))[:500], maybe_applied=defect.maybe_applied) from error
            what = f"databricks-sdk {sdk_version()} finds a field lacking or garbled ({type(error).__name__}: {error})"
            raise WorkspaceUnavailable(self.scrub(f"the workspace's answer: {what}")[:500], status=200) from None

    def _check_credentials(self, refusal: Refused) -> None:
        """A 403 may be about one job, or about us altogether (an invalid token, an address that is not allowed).

        Raises AuthenticationFailed in the latter case, and WorkspaceUnavailable when that cannot be found out now:
        a row must not be refused for what may be our own fault.
        """
        for question in (_ME, _ANY_JOBS):
            try:
                self._http.do("GET", *question)
            except AuthenticationFailed:
                raise AuthenticationFailed(str(refusal), status=refusal.status) from None
            except Refused as error:
                if error.status == _FORBIDDEN:
                    raise AuthenticationFailed(str(refusal), status=refusal.status) from None
            except Unavailable:
                continue
            else:
                return
        raise WorkspaceUnavailable(
            f"{refusal}; whether that is about this call or about our credentials the workspace does not say",
            maybe_applied=False,
            status=refusal.status,
        )


class Pages:
    """For one reading: what a service class of the SDK takes as its client, with pages that come to an end.

    ``do`` raises WorkspaceUnavailable for a page that was read before, and for pages without end.
    """

    def __init__(self, http: Http, clock: Callable[[], float] = time.monotonic) -> None:
        self._http = http
        self._cfg = http._cfg  # noqa: SLF001 the name by which the SDK asks for it
        self._clock = clock
        self._seconds = 0.0
        self._seen: set[str] = set()

    def do(
        self,
        method: str,
        path: str | None = None,
        query: Mapping[str, Any] | None = None,
        **more: Any,  # noqa: ANN401
    ) -> dict[str, Any]:
        """One attempt; raises as that of ``OneAttempt``."""
        token = (query or {}).get("page_token")
        if token is not None and repr(token) in self._seen:
            raise WorkspaceUnavailable(f"the workspace gives the same page of {path} again and again", status=200)
        if len(self._seen) >= _MOST_PAGES or self._seconds > _LONGEST_READING_SECONDS:
            raise WorkspaceUnavailable(f"the workspace gives page after page of {path} without an end", status=200)
        began = self._clock()
        answer = self._http.do(method, path, query=query, **more)
        # Time between two pages is the caller's, who may have a pace to keep.
        self._seconds += self._clock() - began
        if token is not None:
            self._seen.add(repr(token))
        return answer


class OnePage:
    """What a service class of the SDK takes as its client when it is to read one page: it sees no further one.

    Attributes:
        next_token: The token of the next page, once this one was read; None or empty at the end.
    """

    def __init__(self, pages: Pages) -> None:
        self._pages = pages
        self._cfg = pages._cfg  # noqa: SLF001 the name by which the SDK asks for it
        self.next_token: str | None = None

    def do(self, method: str, path: str | None = None, **more: Any) -> dict[str, Any]:  # noqa: ANN401
        """As that of ``Pages``, without the word of a further page."""
        answer = dict(self._pages.do(method, path, **more))
        self.next_token = answer.pop("next_page_token", None)
        return answer


def identifier(value: object, call: str, name: str) -> int:
    """An id out of an answer; WorkspaceUnavailable when it is none, since the call may have taken effect."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= INT64_MAX:
        return value
    message = f"the workspace answered 200 to {call} without a usable {name}"
    raise WorkspaceUnavailable(message, status=200)


def word(value: object) -> str | None:
    """A state as the workspace words it; None for what the SDK does not know."""
    return str(value.value) if isinstance(value, Enum) else None


def snapshot(run_id: int, seen: Any, repair_ids: tuple[int, ...] = ()) -> RunSnapshot:  # noqa: ANN401 Run or RunTask
    """The state of a run or of a task run; ``status`` came with API 2.2, databricks-sdk 0.30 has none."""
    status = getattr(seen, "status", None)
    details = getattr(status, "termination_details", None)
    return RunSnapshot(
        run_id=run_id,
        job_id=getattr(seen, "job_id", None),
        life_cycle_state=word(getattr(seen.state, "life_cycle_state", None)),
        result_state=word(getattr(seen.state, "result_state", None)),
        status_state=word(getattr(status, "state", None)),
        termination_code=word(getattr(details, "code", None)),
        message=str(getattr(seen.state, "state_message", None) or ""),
        repair_ids=repair_ids,
        page_url=getattr(seen, "run_page_url", None),
    )


def jobs_api(client: Http | Pages | OnePage) -> JobsAPI:
    """The plain service class of the SDK over a client."""
    # The SDK's constructor has no types; all it asks of its client is ``do`` and ``_cfg``.
    build: Callable[[Http | Pages | OnePage], JobsAPI] = JobsAPI
    return build(client)
