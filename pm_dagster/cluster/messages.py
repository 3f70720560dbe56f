"""The form of what the entry says: log lines and output without secrets, and how the program ends."""

from __future__ import annotations

import logging
import os
import sys
import time
from contextlib import suppress

from pm_dagster import logs
from pm_dagster.config.masking import scrubbed
from pm_dagster.config.settings import Settings

log = logging.getLogger("process_manager")


class Ended(SystemExit):
    """Ends the program with a status. Databricks shows the text as the run's error; Python itself prints nothing."""

    def __init__(self, reason: str, status: int) -> None:
        super().__init__(reason)
        self.code = status


class _Lines(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S")
        self.converter = time.gmtime

    def format(self, record: logging.LogRecord) -> str:
        return scrubbed(super().format(record))


def log_to_stderr() -> None:
    """Send our lines from INFO on, and the libraries' warnings, to standard error, without secrets."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines())
    log.setLevel(logging.INFO)
    log.propagate = False
    log.handlers = [handler]
    # Databricks' own handlers stay as they are.
    if not logging.getLogger().handlers:
        logging.getLogger().addHandler(handler)


def log_events(settings: Settings) -> None:
    """Send the events of the dispatch to standard error too, from PM_LOG_LEVEL on (info), in the form of PM_LOG_FORMAT.

    In JSON the program's own lines are events as well, so that a collector reads one form.
    """
    as_json = settings.log_format == "json"
    logs.configure(settings.log_level or "info", as_json=as_json, stream=sys.stderr)
    if as_json:
        log.handlers = list(logging.getLogger(logs.ROOT).handlers)


def one_line(error: BaseException) -> str:
    """The text of an error in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def say(text: str) -> None:
    """Print text, with escapes for what the output's encoding lacks: an ASCII output must not end the pass."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)  # noqa: T201 it is the program's output
    except OSError as error:
        log.warning("the output cannot be written any more: %s", error.strerror or type(error).__name__)
        # The interpreter would try again at its end, and fail.
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
