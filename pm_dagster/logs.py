"""What happens is logged: standard ``logging``, an event name and fields.

Every module logs as ``logging.getLogger(__name__)``. The message is the event's name, fixed and in plain words; what
belongs to it is passed as fields: ``_log.info("circuit breaker opened", extra=fields(call="run-now", pause=2.0))``.

A process that is ours (``pm``, the cluster's program) calls ``configure`` once. Inside Dagster, where the process is
Dagster's, ``MaskingFilter`` and ``event_text`` serve a handler that writes to ``context.log``.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

from pm_dagster.config.masking import scrubbed
from pm_dagster.text import escape_controls

#: The parent of all our loggers; nothing else of ``logging`` is touched.
ROOT = "pm_dagster"
# Unless somebody asks for them, events go nowhere; without a handler Python itself would print the warnings.
logging.getLogger(ROOT).addHandler(logging.NullHandler())
#: A value that reads the same without quotation marks.
_PLAIN = re.compile(r"[\w./:@+*-]+")


def fields(**values: object) -> dict[str, dict[str, object]]:
    """What belongs to an event, for ``extra=`` of a logging call: run_id, entry, call, pause (seconds) and the like."""
    return {"fields": values}


def configure(level: str, *, as_json: bool = False, stream: TextIO | None = None) -> None:
    """Send our events to a stream, without secrets; a second call takes the place of the first.

    Args:
        level: The least level that is shown: debug, info, warning or error.
        as_json: One JSON object a line instead of text for people.
        stream: Where to; standard error by default.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.addFilter(MaskingFilter())
    handler.setFormatter(JsonFormatter() if as_json else TextFormatter())
    logger = logging.getLogger(ROOT)
    logger.handlers = [handler]
    logger.setLevel(level.upper())
    # The process' own handlers would show each event a second time.
    logger.propagate = False


class MaskingFilter(logging.Filter):
    """Takes secrets out of a record: out of its message, fields and exception.

    It belongs on a handler, because the filters of a logger do not see the records of its children. It changes the
    record itself, so that handlers that come later cannot show what it took out.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Mask; every record passes."""
        record.msg, record.args = scrubbed(_message(record)), None
        if record.exc_info:
            # Only the text is kept: the exception itself holds what the text no longer does.
            record.exc_text = record.exc_text or logging.Formatter().formatException(record.exc_info)
            record.exc_info = None
        record.exc_text = record.exc_text and scrubbed(record.exc_text)
        record.stack_info = record.stack_info and scrubbed(record.stack_info)
        record.__dict__["fields"] = {name: _masked(value) for name, value in _fields_of(record).items()}
        return True


class TextFormatter(logging.Formatter):
    """An event as a line for people: time (UTC), level, event, fields.

    Control characters are escaped, so a text from outside can neither begin a line nor move the cursor. The lines of a
    traceback follow, indented.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The line or lines."""
        first = f"{_time(record)} {record.levelname} {event_text(record)}"
        return "\n".join([first, *(f"    {escape_controls(line)}" for line in _trace(record).splitlines())])


class JsonFormatter(logging.Formatter):
    """An event as a JSON object on a line: time (UTC), level, logger, event, fields and, if there is one, exception."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        found: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": _message(record),
            "fields": _fields_of(record),
        }
        if trace := _trace(record):
            found["exception"] = trace
        return json.dumps(found, default=str)


def event_text(record: logging.LogRecord) -> str:
    """The event and its fields on one line, such as ``retrying what="reading the vault" pause=0.5``."""
    parts = (f"{name}={_shown(value)}" for name, value in _fields_of(record).items())
    return " ".join([escape_controls(_message(record)), *parts])


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except (TypeError, ValueError):
        # A message and arguments that do not fit each other are our mistake, and no reason to lose the event.
        return f"{record.msg} {record.args}"


def _fields_of(record: logging.LogRecord) -> Mapping[str, object]:
    found: Mapping[str, object] = getattr(record, "fields", {})
    return found


def _trace(record: logging.LogRecord) -> str:
    if record.exc_info and not record.exc_text:
        record.exc_text = logging.Formatter().formatException(record.exc_info)
    return "\n".join(filter(None, (record.exc_text, record.stack_info)))


def _time(record: logging.LogRecord) -> str:
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z"


def _masked(value: object) -> Any:  # noqa: ANN401 of whatever kind it was
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, Mapping):
        return {scrubbed(str(name)): _masked(part) for name, part in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_masked(part) for part in value]
    return scrubbed(str(value))


def _shown(value: object) -> str:
    text = escape_controls(str(value))
    return text if _PLAIN.fullmatch(text) else '"{}"'.format(text.replace("\\", "\\\\").replace('"', '\\"'))
