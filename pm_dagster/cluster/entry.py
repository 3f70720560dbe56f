"""The cluster's program: one dispatch, without Dagster, and what its end means for the job."""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

from pm_dagster import logs
from pm_dagster.cluster.options import Ended, Options, read_options
from pm_dagster.cluster.report import ReportFile, rows_to_show, say, table
from pm_dagster.config.credentials import resolved
from pm_dagster.config.masking import scrubbed
from pm_dagster.config.settings import Settings, settings_from
from pm_dagster.databricks.runs import SdkRuns
from pm_dagster.databricks.sign_in import signed_in
from pm_dagster.dispatch.batches import READ_AT_ONCE
from pm_dagster.dispatch.model import Outcome
from pm_dagster.dispatch.report import Report, ReportRow, report_line
from pm_dagster.dispatch.service import Dispatch
from pm_dagster.dispatch.waiting_job import RawRow
from pm_dagster.errors import ProcessManagerError
from pm_dagster.ledger.control_plane import PostgresControlPlane
from pm_dagster.logs import fields
from pm_dagster.stop_signals import stop_on_signal
from pm_dagster.text import error_text

_log = logging.getLogger(__name__)
_LOG_SETTINGS = ("PM_LOG_LEVEL", "PM_LOG_FORMAT")


def main(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> None:
    """Do one dispatch; returns when it ran and its report file, if one was asked for, was written.

    Args:
        arguments: The options of the command line.
        environment: The variables with the settings and credentials.

    Raises:
        Ended: Otherwise, after the log has said why: with status 1, or 2 for wrong usage.
    """
    began = time.monotonic()
    options = read_options(arguments)
    _log_to_stderr("info", as_json=False)
    try:
        settings = settings_from({name: environment.get(name, "") for name in _LOG_SETTINGS})
        _log_to_stderr(settings.log_level or "info", as_json=settings.log_format == "json")
        _run(options, environment, began)
    except ProcessManagerError as error:
        reason = _could_not_run(error_text(error))
    except KeyboardInterrupt:
        reason = _could_not_run("it was interrupted before it began; nothing was sent")
    except Exception as error:  # noqa: BLE001 nothing may leave but through the log, which takes the secrets out
        reason = _broken_off(error, in_full=environment.get("PM_DEBUG", "0") not in ("", "0"))
    else:
        return
    # Not while an error is handled: Databricks would show its stack.
    raise Ended(scrubbed(reason), 1)


def _could_not_run(why: str) -> str:
    _log.critical("dispatch could not run", extra=fields(reason=why))
    return f"the dispatch could not run: {why}"


def _broken_off(error: Exception, *, in_full: bool) -> str:
    why = f"{type(error).__name__}: {error_text(error)}"
    if not in_full:
        why = f"{why}; PM_DEBUG=1 shows where it comes from"
    _log.critical("dispatch broken off", exc_info=error if in_full else None, extra=fields(reason=why))
    return f"an unexpected error broke the dispatch off: {why}"


def _log_to_stderr(level: str, *, as_json: bool) -> None:
    """Send our events to standard error, and the warnings of libraries where nobody else does; without secrets.

    Databricks keeps standard error in the cluster's logs, and shows standard output on the run's page.
    """
    ours, everybodys = logging.getLogger(logs.ROOT), logging.getLogger()
    earlier = list(ours.handlers)
    logs.configure(level, as_json=as_json, stream=sys.stderr)
    # The handlers that Databricks has set stay as they are.
    if all(handler in earlier for handler in everybodys.handlers):
        everybodys.handlers = list(ours.handlers)


def _run(options: Options, given: Mapping[str, str], began: float) -> None:
    report_file = ReportFile(options.report) if options.report else None
    environment = resolved(given).environment
    settings = settings_from(environment)
    runs = SdkRuns(signed_in(environment, settings), settings)
    where, rows = _read_by_spark(options, settings)
    # What came before the dispatch counts towards the job's time limit too.
    remaining = max(1.0, settings.deadline_seconds - (time.monotonic() - began))
    with _control_plane(settings, where) as control, stop_on_signal() as stop:
        dispatch = Dispatch(control, runs, replace(settings, deadline_seconds=remaining), stop=stop)
        first = min(options.limit or settings.dispatch_limit, READ_AT_ONCE)
        report = dispatch.run(options.limit, dispatch.read(first) if rows is None else rows)
    if stop.is_set():
        _log.warning("dispatch stopped on request", extra=fields(left=report.left))
    shown = rows_to_show(report)
    failure = _written(report_file, report, shown)
    _log_numbers(report, shown)
    if shown:
        say(table(shown))
    say(report_line(report))
    if failure is not None:
        raise Ended(scrubbed(failure), 1)


def _read_by_spark(options: Options, settings: Settings) -> tuple[str, list[RawRow] | None]:
    """Where this runs, and the rows; None where the plain driver is to read them."""
    if options.read == "driver":
        return socket.gethostname(), None
    from pm_dagster.cluster.spark_read import read_waiting  # noqa: PLC0415 --read driver does without Spark

    read = read_waiting(settings, options.limit or settings.dispatch_limit)
    return read.cluster or socket.gethostname(), read.rows


@contextmanager
def _control_plane(settings: Settings, where: str) -> Iterator[PostgresControlPlane]:
    control = PostgresControlPlane(settings, f"process_manager.py on {where}, process {os.getpid()}")
    try:
        yield control
    finally:
        control.end()


def _written(file: ReportFile | None, report: Report, rows: Sequence[ReportRow]) -> str | None:
    """Write the report file, if one was asked for; gives why it could not be written."""
    if file is None:
        return None
    try:
        file.write(report, rows)
    except ProcessManagerError as error:
        _log.error("report file not written", extra=fields(reason=error_text(error)))
        return f"the dispatch ran, but {error_text(error)}"
    _log.info("report file written", extra=fields(file=file.path))
    return None


def _log_numbers(report: Report, rows: Sequence[ReportRow]) -> None:
    refused = sum(row.outcome is Outcome.QUARANTINED for row in rows)
    later = sum(row.outcome in (Outcome.DEFERRED, Outcome.LEFT) for row in rows)
    if refused:
        hint = "the control table says why; `pm redrive` puts rows back"
        _log.error("rows refused", extra=fields(rows=refused, hint=hint))
    _log.info(
        "program finished",
        extra=fields(
            read=report.read,
            scheduled=report.scheduled,
            refused=refused,
            left_for_later=later,
            calls=report.calls,
            seconds=round(report.seconds, 1),
        ),
    )
