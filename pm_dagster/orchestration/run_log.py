"""The events of Process Manager in the log of a Dagster run."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from pm_dagster.logs import ROOT, MaskingFilter, event_text


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
