"""How an op runs: which failures Dagster retries, how a failure reads in the UI, and what goes into the run's log.

One row's failure never gets here: it is an outcome of the row, not of the op. The retries of single calls are in
``net.retry``.
"""

import logging
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
from pm_dagster.logs import ROOT, MaskingFilter, event_text

#: For "the workspace or the database cannot be reached". About 5, 10 and 20 seconds apart.
RETRY = dg.RetryPolicy(max_retries=3, delay=5, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS)

_ADVICE = {
    AuthenticationFailed: "Check the workspace credentials of this deployment. No row has lost an attempt.",
    NotAdmitted: ("Let this network into the workspace (IP access list, private link). No row has lost an attempt."),
    AllStartsRefused: (
        "Check the rights of the user that Process Manager signs in as, DATABRICKS_HOST, and whether the workspace is "
        "in maintenance. No row is blamed."
    ),
    ConfigurationError: "Correct the setting that the message names. `pm doctor` checks all of them.",
}


class Cancelled(dg.DagsterError, dg.DagsterExecutionInterruptedError):
    """The run was cancelled.

    Dagster 1.13 retries an op that has a policy also when it was interrupted, unless what it raises is a DagsterError
    (``dagster/_core/execution/plan/utils.py``). As an interruption it ends the run as cancelled.
    """


@contextmanager
def step(context: dg.OpExecutionContext | dg.AssetExecutionContext) -> Iterator[None]:
    """Run one step of Process Manager in an op: its errors in Dagster's terms, its events in the run's log."""
    with events_go_to(context.log, context.instance), translated():
        yield


@contextmanager
def translated() -> Iterator[None]:
    """Leave Unavailable to the retry policy and turn NeverAgain into a failure that is not retried.

    Both are raised anew without their cause: a chained traceback may show a secret that the text masks. An interruption
    becomes Cancelled. Every other exception passes through.
    """
    try:
        yield
    except (dg.DagsterExecutionInterruptedError, KeyboardInterrupt):
        raise Cancelled("the run was cancelled") from None
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


class _RunLog(logging.Handler):
    def __init__(self, log: dg.DagsterLogManager) -> None:
        super().__init__(logging.INFO)
        self._log = log
        self.addFilter(MaskingFilter())

    def emit(self, record: logging.LogRecord) -> None:
        """Write the event and its fields as one line; a log that cannot be written ends no dispatch."""
        try:
            self._log.log(record.levelno, event_text(record))
        except Exception:  # noqa: BLE001 as logging's own handlers: reported on standard error
            self.handleError(record)


@contextmanager
def events_go_to(log: dg.DagsterLogManager, instance: dg.DagsterInstance) -> Iterator[None]:
    """Write what our modules log, from info on, into the run's log as well, from whichever thread it comes.

    Transitions of single rows are at debug and stay out: a run's log is kept in Dagster's database. Where dagster.yaml
    has our logger, or the root, among its ``managed_python_loggers``, Dagster captures the events itself.
    """
    if {ROOT, "root"} & set(instance.managed_python_loggers):
        yield
        return
    ours = logging.getLogger(ROOT)
    handler, level = _RunLog(log), ours.level
    ours.addHandler(handler)
    if ours.getEffectiveLevel() > logging.INFO:
        ours.setLevel(logging.INFO)
    try:
        yield
    finally:
        ours.removeHandler(handler)
        ours.setLevel(level)
