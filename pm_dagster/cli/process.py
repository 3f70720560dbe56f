"""What the process of `pm` gets from outside, streams and signals, and its last words.

Put here: what happens before a command is known and after it ended. Keep out: commands.
"""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from pm_dagster import logs
from pm_dagster.config.masking import scrubbed
from pm_dagster.errors import ProcessManagerError
from pm_dagster.text import escape_controls


@contextmanager
def made_ready() -> Iterator[None]:
    """A process whose output takes any text, and which Ctrl-C ends at once, as it does any program.

    Python would only note the signal and go on while a library waits, for instance for a database that does not answer;
    who has something to finish takes the signal itself (``stop_signals``).
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            # Closed before we began; libraries take it for granted.
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115 it stays open
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        _flush()


@contextmanager
def logs_as_before() -> Iterator[None]:
    """Give a process that is not ours its logging back at the end."""
    logger = logging.getLogger(logs.ROOT)
    before = (logger.handlers[:], logger.level, logger.propagate)
    try:
        yield
    finally:
        logger.handlers, level, logger.propagate = before
        logger.setLevel(level)


def _flush() -> None:
    """The interpreter would do it, and complain in its own words if nobody takes the output any more."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def say_why(error: Exception, *, in_full: bool) -> None:
    """Say in one line on standard error why a command could not be done; ``in_full`` where the error came from, too."""
    if in_full:
        lines = "".join(traceback.format_exception(error)).splitlines()
        _say("\n".join(map(escape_controls, scrubbed("\n".join(lines)).splitlines())))
    words = " ".join(scrubbed(str(error)).split())
    if isinstance(error, ProcessManagerError):
        _say(f"pm: {escape_controls(words)}")
        return
    more = "" if in_full else "; PM_DEBUG=1 shows where it came from"
    what = f"{type(error).__name__}: {words}" if words else type(error).__name__
    _say(f"pm: {_kind(error)}: {escape_controls(what)}{more}")


def _kind(error: Exception) -> str:
    return "the system refused something" if isinstance(error, OSError) else "an error in pm itself"


def _say(text: str) -> None:
    with suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)  # noqa: T201 it is the program's output
