"""The body of an answer, within bounds of size and time.

Put here: reading it. Keep out: what it says.
"""

from __future__ import annotations

import requests

from pm_dagster.errors import WorkspaceUnavailable
from pm_dagster.net.watchdog import shutdown_after

#: Unpacked. The longest answers that the Jobs API documents, a page of 100 tasks or of 25 runs, are far below a tenth.
MOST_BYTES = 16 * 2**20
_CHUNK_BYTES = 65_536


def read_body(response: requests.Response, seconds: float) -> bytes:
    """The body of an answer that was asked for with ``stream=True``.

    Raises WorkspaceUnavailable for one that is too long, requests' errors for one that breaks off or takes longer than
    ``seconds`` as a whole: requests itself only limits the pauses in between.
    """
    parts: list[bytes] = []
    size = 0
    with shutdown_after(response.raw.fileno, seconds, ValueError), response:
        for part in response.iter_content(_CHUNK_BYTES):
            parts.append(part)
            size += len(part)
            if size > MOST_BYTES:
                message = f"the workspace answered HTTP {response.status_code} with more than {MOST_BYTES} bytes"
                raise WorkspaceUnavailable(message, status=response.status_code)
    return b"".join(parts)
