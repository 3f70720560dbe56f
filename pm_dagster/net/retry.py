"""The one retry of the project: a few more tries of something that an outside system did not answer.

What nests in what: a transaction is tried 3 times within 4 s (``ledger/session``), inside the ledger writer's 8 tries
within 30 s (``dispatch/ledger_writer``), inside Dagster's 4 tries of an op (``orchestration/execution``); a look into a
store of secrets or a token of Entra ID is tried 3 times inside an op; a call to the Jobs API is one attempt, which the
dispatch repeats by its own rules (``PM_CALL_TRIES``, between other rows' calls) and the launcher by this module. So the
worst case of a write is 3 x 8 x 4 tries, and its time is what counts: no try begins later than 4 s and 30 s after the
first one, and no later than the deadline of the dispatch.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from pm_dagster.errors import Unavailable
from pm_dagster.logs import fields

T = TypeVar("T")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Retry:
    """How often, how far apart and after which errors something is tried again.

    Attributes:
        pauses: Seconds before the second try, the third and so on; one more try than there are pauses.
        on: The errors that another try may help against. All others are raised at once.
        longest_pause: Limit in seconds for a pause that the other side asks for (``retry_after`` of the error).
        within: No further try begins when a failure comes this many seconds after the first try began.
    """

    pauses: Iterable[float] = (0.5, 1.5)
    on: type[Exception] | tuple[type[Exception], ...] = Unavailable
    longest_pause: float = 5.0
    within: float = math.inf

    def pause(self, planned: float, error: Exception) -> float:
        """The planned pause, or the longer one that the error asks for, up to ``longest_pause``; in seconds."""
        return min(max(planned, asked_pause(error)), self.longest_pause)


#: Three tries within seconds. Longer outages are for those who come again later: the op, the next dispatch.
BRIEFLY = Retry()


def exponential(first: float, retries: int) -> Iterator[float]:
    """That many pauses, each twice as long as the one before, beginning with ``first`` seconds."""
    return (first * 2**number for number in range(retries))


def asked_pause(error: Exception) -> float:
    """The pause in seconds that the other side asked for, 0 when it asked for none."""
    return float(getattr(error, "retry_after", None) or 0.0)


def retry(
    work: Callable[[], T],
    policy: Retry | None = None,
    *,
    what: str,
    sleep: Callable[[float], object] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> T:
    """Do ``work`` until it succeeds, fails for good, or the tries are used up.

    Args:
        work: What is done; it may run several times.
        policy: How often and after which errors; ``BRIEFLY`` by default.
        what: What is tried, in words for the log. Each further try is logged as ``retrying``.
        sleep: Waits for so many seconds. ``Event.wait`` of a stop event cuts the pauses short; an exception that it
            raises ends the tries.
        clock: Seconds, for ``policy.within``.

    Returns:
        What ``work`` gives.

    Raises:
        Exception: The last error of ``work``.
    """
    policy = policy or BRIEFLY
    began = clock()
    for number, planned in enumerate(policy.pauses, start=2):
        try:
            return work()
        except policy.on as error:
            if clock() - began > policy.within:
                raise
            pause = policy.pause(planned, error)
            kind = type(error).__name__
        # The kind only: the text may hold what the other side repeats of our request.
        _log.info("retrying", extra=fields(what=what, attempt=number, pause=pause, error=kind))
        sleep(pause)
    return work()
