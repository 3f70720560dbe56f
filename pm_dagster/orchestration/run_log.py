"""The events of Process Manager in the log of a Dagster run."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from pm_dagster.config.masking import scrubbed

_OURS = logging.getLogger("pm_dagster")


class _RunLog(logging.Handler):
    def __init__(self, log: dg.DagsterLogManager) -> None:
        super().__init__(logging.INFO)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """Write the event's name and its fields as one line."""
        named: dict[str, object] = getattr(record, "fields", {})
        text = ", ".join(f"{name}={value}" for name, value in named.items() if value is not None)
        line = f"{record.getMessage()}: {text}" if text else record.getMessage()
        self._log.log(record.levelno, scrubbed(line))


@contextmanager
def events_go_to(log: dg.DagsterLogManager) -> Iterator[None]:
    """Write what our modules log, from info on, into the run's log as well.

    Transitions of single rows are at debug and stay out: a run's log is kept in Dagster's database.
    """
    handler, level = _RunLog(log), _OURS.level
    _OURS.addHandler(handler)
    if _OURS.getEffectiveLevel() > logging.INFO:
        _OURS.setLevel(logging.INFO)
    try:
        yield
    finally:
        _OURS.removeHandler(handler)
        _OURS.setLevel(level)
