"""A few more tries of something that an outside system did not answer.

Put here: the short loop around a single request. Keep out: the loop around calls of a dispatch (``attempts.py``) and
the repetition of ops (Dagster's RetryPolicy).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from pm_dagster.errors import Unavailable

T = TypeVar("T")
_PAUSES = (0.5, 1.5)
_LONGEST_PAUSE = 5.0


def patiently(work: Callable[[], T], *, sleep: Callable[[float], None] = time.sleep) -> T:
    """What ``work`` gives; it is tried three times within seconds as long as it raises Unavailable.

    A pause that the other side asks for (``retry_after``) is kept up to five seconds: longer ones are for those who
    come again later, the op's RetryPolicy and the next dispatch.
    """
    for pause in _PAUSES:
        try:
            return work()
        except Unavailable as error:
            asked: float | None = getattr(error, "retry_after", None)
            sleep(min(asked if asked is not None else pause, _LONGEST_PAUSE))
    return work()
