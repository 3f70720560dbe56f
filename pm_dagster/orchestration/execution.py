"""How an op runs: which failures Dagster retries, how a failure reads in the UI, and what goes into the run's log.

One row's failure never gets here: it is an outcome of the row, not of the op. The retries of single calls are in
``net.retry``.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
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

#: Events of an op that has not begun are kept up to this number.
_MOST_KEPT = 1000
#: Events that are no op's.
_NO_OP = ""

_ADVICE = {
    AuthenticationFailed: "Check the workspace credentials of this deployment. No row has lost an attempt.",
    NotAdmitted: ("Let this network into the workspace (IP access list, private link). No row has lost an attempt."),
    AllStartsRefused: (
        "Check the rights of the user that Process Manager signs in as, DATABRICKS_HOST, and whether the workspace is "
        "in maintenance. No row is blamed."
    ),
    ConfigurationError: "Correct the setting that the message names. `pm doctor` checks all of them.",
}


def ops_of(context: dg.OpExecutionContext) -> set[str]:
    """The ops of this run, by name: all of its job, or those that a re-execution or a selection leaves."""
    there = {node.name for node in context.job_def.all_node_defs}
    keys = context.run.step_keys_to_execute
    return there if keys is None else there & {key.rpartition(".")[2] for key in keys}


class Cancelled(dg.DagsterError, dg.DagsterExecutionInterruptedError):
    """The run was cancelled.

    Dagster 1.13 retries an op that has a policy also when it was interrupted, unless what it raises is a DagsterError
    (``dagster/_core/execution/plan/utils.py``). As an interruption it ends the run as cancelled.
    """


@contextmanager
def step(
    context: dg.OpExecutionContext | dg.AssetExecutionContext, events: "EventsByOp | None" = None
) -> Iterator[None]:
    """Run one step of Process Manager in an op: its errors in Dagster's terms, its events in the run's log.

    Args:
        context: The op's.
        events: Those of the session, where ops share one sending.
    """
    told = events_go_to(context.log, context.instance) if events is None else events.of(context)
    with told, translated():
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
    if _dagster_captures_them(instance):
        yield
        return
    level = _attach(handler := _RunLog(log))
    try:
        yield
    finally:
        _detach(handler, level)


class EventsByOp(logging.Handler):
    """The events of ops that share one sending: each in the log of the op that it is about.

    An event about a row of an op that has not begun is kept, and written when that op begins, with its own time in
    ``at``. Every other event is the running op's. Between two ops all are kept.

    Args:
        op_of: The name of the op that sends the row of an entry; None where it is no op's.
    """

    def __init__(self, op_of: Callable[[int], str | None]) -> None:
        super().__init__(logging.INFO)
        self._op_of = op_of
        self._running: tuple[str, dg.DagsterLogManager] | None = None
        self._begun: set[str] = set()
        self._kept: dict[str, deque[tuple[int, str]]] = {}
        self._dropped: dict[str, int] = {}
        #: The logger's level from before, while this handler is attached.
        self._level: int | None = None
        self.addFilter(MaskingFilter())

    @contextmanager
    def of(self, context: dg.OpExecutionContext | dg.AssetExecutionContext) -> Iterator[None]:
        """While this is open, the op of ``context`` is the running one. As ``events_go_to``, but until ``end``."""
        if _dagster_captures_them(context.instance):
            yield
            return
        if self._level is None:
            self._level = _attach(self)
        with self._locked():
            self._running = name, _ = context.op_def.name, context.log
            self._begun.add(name)
            self._write_kept(context.log, name, _NO_OP)
        try:
            yield
        finally:
            with self._locked():
                self._running = None

    def end(self, log: dg.DagsterLogManager | None) -> None:
        """Write what no op came for into the log of the run, and attach to nothing any more."""
        if self._level is not None:
            _detach(self, self._level)
            self._level = None
        with self._locked():
            if log is not None:
                self._write_kept(log, *list(self._kept))

    def emit(self, record: logging.LogRecord) -> None:
        """Write the event, or keep it; a log that cannot be written ends no dispatch."""
        try:
            op = self._op_of(getattr(record, "fields", {}).get("entry", 0))
            if self._running is not None and (op in (None, self._running[0]) or op in self._begun):
                self._running[1].log(record.levelno, event_text(record))
            else:
                self._keep(op or _NO_OP, record)
        except Exception:  # noqa: BLE001 as logging's own handlers: reported on standard error
            self.handleError(record)

    def _keep(self, op: str, record: logging.LogRecord) -> None:
        kept = self._kept.setdefault(op, deque())
        if len(kept) < _MOST_KEPT:
            moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            kept.append((record.levelno, f"{event_text(record)} at={moment}.{int(record.msecs):03d}Z"))
        else:
            self._dropped[op] = self._dropped.get(op, 0) + 1

    def _write_kept(self, log: dg.DagsterLogManager, *ops: str) -> None:
        for op in ops:
            for level, text in self._kept.pop(op, ()):
                log.log(level, text)
            if dropped := self._dropped.pop(op, 0):
                log.warning("further events from before this op began: %d; `pm explain` has each row", dropped)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.acquire()
        try:
            yield
        finally:
            self.release()


def _dagster_captures_them(instance: dg.DagsterInstance) -> bool:
    return bool({ROOT, "root"} & set(instance.managed_python_loggers))


def _attach(handler: logging.Handler) -> int:
    """Let the handler have our events from info on; gives the level from before."""
    ours = logging.getLogger(ROOT)
    level = ours.level
    ours.addHandler(handler)
    if ours.getEffectiveLevel() > logging.INFO:
        ours.setLevel(logging.INFO)
    return level


def _detach(handler: logging.Handler, level: int) -> None:
    ours = logging.getLogger(ROOT)
    ours.removeHandler(handler)
    ours.setLevel(level)
