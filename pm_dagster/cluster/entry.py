"""One pass on a cluster: the steps, and what the end of each means for the job.

Put here: the order of the steps, exit codes, what is logged. Keep out: the pass itself (``core.dispatch``) and whatever
has a module of its own beside this one.
"""

from __future__ import annotations

import os
import socket
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

from pm_dagster.cluster.messages import Ended, log, log_events, log_to_stderr, one_line, say
from pm_dagster.cluster.options import Options, read_options
from pm_dagster.cluster.outcome_table import by_urgency, table
from pm_dagster.cluster.report_file import ReportFile
from pm_dagster.config.credentials import resolved
from pm_dagster.config.masking import scrubbed
from pm_dagster.config.settings import Settings, settings_from
from pm_dagster.databricks.runs import SdkRuns
from pm_dagster.databricks.sign_in import workspace_client
from pm_dagster.dispatch.model import Outcome
from pm_dagster.dispatch.report import Report, ReportRow, report_line
from pm_dagster.dispatch.service import Dispatch
from pm_dagster.dispatch.waiting_job import RawRow
from pm_dagster.errors import ProcessManagerError
from pm_dagster.ledger.control_plane import PostgresControlPlane
from pm_dagster.stop_signals import stop_on_signal

_LOG_SETTINGS = ("PM_LOG_LEVEL", "PM_LOG_FORMAT")


def main(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> None:
    """Do the pass; returns when it ran and its report, if one was asked for, was written.

    Args:
        arguments: The options of the command line.
        environment: The variables with the settings and credentials.

    Raises:
        Ended: Otherwise, after the log has said why: with status 1, or 2 for wrong usage.
    """
    began = time.monotonic()
    options = read_options(arguments)
    log_to_stderr()
    try:
        log_events(settings_from({name: environment.get(name, "") for name in _LOG_SETTINGS}))
        _run(options, environment, began)
    except ProcessManagerError as error:
        reason = f"the pass could not run: {one_line(error)}"
    except KeyboardInterrupt:
        reason = "interrupted before the pass began; nothing was sent"
    except Exception as error:  # noqa: BLE001 nothing may leave but through the log, which takes the secrets out
        more = "; PM_DEBUG=1 shows where it came from"
        if environment.get("PM_DEBUG", "0") not in ("", "0"):
            log.error("%s", traceback.format_exc().rstrip())
            more = ""
        reason = f"the pass ended by an error in itself: {type(error).__name__}: {one_line(error)}{more}"
    else:
        return
    log.critical("%s", reason)
    raise Ended(scrubbed(reason), 1)


def _run(options: Options, given: Mapping[str, str], began: float) -> None:
    report_file = ReportFile(options.report) if options.report else None
    environment = resolved(given).environment
    settings = settings_from(environment)
    runs = SdkRuns(workspace_client(environment, settings), settings)
    where, rows = _read_elsewhere(options, settings)
    # What came before the dispatch counts towards the job's time limit too.
    left = max(1.0, settings.deadline_seconds - (time.monotonic() - began))
    with _control_plane(settings, where) as control, stop_on_signal() as stop:
        dispatch = Dispatch(control, runs, replace(settings, deadline_seconds=left), stop=stop)
        rows = dispatch.read(options.limit) if rows is None else rows
        report = dispatch.run(options.limit, rows)
    if stop.is_set():
        log.warning("stopped on request; %d claimed rows were given back", report.left)
    told = [_scrubbed(row) for row in by_urgency([*report.rows, *report.unsent])]
    failure = _written(report_file, report, told)
    _log_success(report, told)
    if told:
        say(table(told))
    say(report_line(report))
    if failure is not None:
        raise Ended(scrubbed(failure), 1)


def _read_elsewhere(options: Options, settings: Settings) -> tuple[str, list[RawRow] | None]:
    """Where this runs, and the rows, if Spark reads them."""
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


def _scrubbed(row: ReportRow) -> ReportRow:
    """The workspace's own credentials are out already; another secret may stand in any text from outside."""
    parameters: Mapping[str, str] = {name: scrubbed(text) for name, text in row.parameters.items()}
    url = row.page_url and scrubbed(row.page_url)
    return replace(row, reason=scrubbed(row.reason), page_url=url, parameters=parameters)


def _written(file: ReportFile | None, report: Report, rows: Sequence[ReportRow]) -> str | None:
    """Write the report file, if one was asked for; gives why it could not be."""
    if file is None:
        return None
    try:
        file.write(report, rows)
    except ProcessManagerError as error:
        failure = f"the pass ran, but {one_line(error)}"
        log.error("%s", failure)
        return failure
    log.info("report written to %s", file.path)
    return None


def _log_success(report: Report, rows: Sequence[ReportRow]) -> None:
    refused = sum(row.outcome is Outcome.QUARANTINED for row in rows)
    later = sum(row.outcome in (Outcome.DEFERRED, Outcome.LEFT) for row in rows)
    if refused:
        log.error("%d rows were refused; the control table says why, `pm redrive` puts them back", refused)
    numbers = (report.read, report.scheduled, refused, later, report.calls, report.seconds)
    log.info("the pass ran: %d read, %d scheduled, %d refused, %d left for later; %d calls in %.1f s", *numbers)
