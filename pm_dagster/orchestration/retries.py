"""Which failures Dagster repeats, and in what words it hears of them.

Put here: the one retry policy and the translation of our errors. Keep out: the repetition of single calls (``core``).
One row's failure never gets here: it is an outcome of the row, not of the op.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from pm_dagster.config.masking import scrubbed
from pm_dagster.errors import (
    AllStartsRefused,
    AuthenticationFailed,
    ConfigurationError,
    NeverAgain,
    NotAdmitted,
    Unavailable,
)

#: For "the workspace or the database cannot be reached". About 5, 10 and 20 seconds apart.
RETRY = dg.RetryPolicy(max_retries=3, delay=5, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS)

_ADVICE = {
    AuthenticationFailed: "Check the workspace credentials of this deployment; no row has lost an attempt.",
    NotAdmitted: "Have this network let in (IP access list, private link); no row has lost an attempt.",
    AllStartsRefused: "Check our user's rights, the workspace's address and its maintenance; no row was blamed.",
    ConfigurationError: "Correct the setting that is named above; `pm doctor` checks all of them.",
}


class Cancelled(dg.DagsterError, dg.DagsterExecutionInterruptedError):
    """The run was told to end.

    Dagster 1.13 retries an op that has a policy also when it was interrupted, unless what it raises is a DagsterError
    (``dagster/_core/execution/plan/utils.py``). As an interruption it ends the run as cancelled.
    """


@contextmanager
def translated() -> Iterator[None]:
    """Leave Unavailable to the retry policy and turn NeverAgain into a failure that is not repeated.

    Both are raised anew without their cause: a chained traceback may show what the text no longer does. Cancellation
    becomes Cancelled, and everything unforeseen passes through.
    """
    try:
        yield
    except (dg.DagsterExecutionInterruptedError, KeyboardInterrupt):
        raise Cancelled("the run was told to end") from None
    except Unavailable as error:
        raise Unavailable(f"{type(error).__name__}: {scrubbed(str(error))}") from None
    except NeverAgain as error:
        raise _failure(error) from None


def _failure(error: NeverAgain) -> dg.Failure:
    metadata: dict[str, str] = {"error": type(error).__name__}
    if advice := _ADVICE.get(type(error)):
        metadata["what to do"] = advice
    if (status := getattr(error, "status", None)) is not None:
        metadata["HTTP status"] = str(status)
    return dg.Failure(description=scrubbed(str(error)), metadata=metadata, allow_retries=False)
