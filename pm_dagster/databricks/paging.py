"""Reading page after page, and knowing when to stop.

Put here: the bounds of a reading. Keep out: what the pages hold.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from pm_dagster.databricks.sdk_check import Http
from pm_dagster.errors import WorkspaceUnavailable

#: At 25 runs a page, what a job starts in hours at the highest rate that the Jobs API takes.
_MOST_PAGES = 10_000
_LONGEST_SECONDS = 120.0


class Pages:
    """For one reading: what a service class of the SDK takes as its client, with pages that come to an end.

    ``do`` raises WorkspaceUnavailable for a page that was read before, and for pages without end.
    """

    def __init__(self, http: Http, clock: Callable[[], float] = time.monotonic) -> None:
        self._http = http
        self._cfg = http._cfg  # noqa: SLF001 the name by which the SDK asks for it
        self._clock = clock
        self._end = clock() + _LONGEST_SECONDS
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
        if token is not None:
            if repr(token) in self._seen:
                raise WorkspaceUnavailable(f"the workspace gives the same page of {path} again and again", status=200)
            self._seen.add(repr(token))
        if len(self._seen) > _MOST_PAGES or self._clock() > self._end:
            raise WorkspaceUnavailable(f"the workspace gives page after page of {path} without an end", status=200)
        return self._http.do(method, path, query=query, **more)
