"""``pm dispatch``: one pass without Dagster, with a progress bar and a table of its rows."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import datetime
from typing import TYPE_CHECKING

import click

from pm_dagster.cli import connections
from pm_dagster.cli.options import json_option, limit_option
from pm_dagster.cli.output import Column, backlog_lines, console, duration, print_json, table
from pm_dagster.dispatch.batches import READ_AT_ONCE
from pm_dagster.dispatch.model import Outcome, RowOutcome
from pm_dagster.dispatch.report import Report, ReportRow
from pm_dagster.dispatch.service import Dispatch
from pm_dagster.stop_signals import stop_on_signal
from pm_dagster.text import counted

if TYPE_CHECKING:
    from pm_dagster.config.settings import Settings
    from pm_dagster.dispatch.ports import Backlog, ControlPlane, DatabricksRuns

_COLUMNS: tuple[Column[ReportRow], ...] = (
    Column("run id", lambda row: row.run_id, right=True),
    Column("branch", lambda row: row.branch.value),
    Column("outcome", lambda row: row.outcome.value),
    Column("status", lambda row: row.control_status),
    Column("reason", lambda row: row.reason, folds=True),
)
#: What needs eyes comes first.
_ORDER = (Outcome.QUARANTINED, Outcome.DEFERRED, Outcome.WITHDRAWN, Outcome.ADOPTED, Outcome.ACCEPTED)
_SHOWN = 60


@click.command("dispatch")
@limit_option
@click.option("--follow", is_flag=True, help="Do not end: take rows about a second after they come, until Ctrl-C.")
@json_option
def command(limit: int | None, *, follow: bool, as_json: bool) -> None:
    """Do one pass: start or repair the jobs that wait, and set their rows to SCHEDULED.

    Ctrl-C or SIGTERM ends the pass cleanly: the answers to the calls under way are awaited and recorded, and the rows
    without a call stay WAITING. A second Ctrl-C ends it at once; the next dispatch then finds out what the calls did.

    With --follow one pass follows another as rows come. Each pass that had rows is reported when it ends, with --json
    as one line. A database or workspace that is away is waited for. Ctrl-C or SIGTERM ends it as a pass, with status 0.
    """
    settings = connections.settings()
    runs = connections.workspace_runs(settings)
    if follow:
        _follow(runs, settings, limit, as_json=as_json)
        return
    with connections.control_plane(settings) as control:
        # Until here nothing is at stake, and a signal simply ends the program.
        most = limit or settings.dispatch_limit
        rows = control.waiting(min(most, READ_AT_ONCE))
        total = _total(control, len(rows), most)
        with _stop_requested() as stop, _progress(total) as seen:
            report = Dispatch(control, runs, settings, stop=stop, on_outcome=seen).run(limit, rows)
        idle = None if report.rows or report.left or as_json else control.backlog()
    if stop.is_set():
        click.echo(f"pm: stopped on request; {counted(report.left, 'row')} without a call stay WAITING", err=True)
    if as_json:
        print_json(report.as_json())
    elif idle is None:
        _print(report)
    else:
        _print_idle(idle, settings)


def _follow(runs: DatabricksRuns, settings: Settings, limit: int | None, *, as_json: bool) -> None:
    with connections.control_plane(settings) as control, _stop_requested() as stop:
        view = f"{settings.schema}.{settings.wait_view}"
        click.echo(f"pm: taking the rows of {view} as they come, until Ctrl-C", err=True)
        for report in Dispatch(control, runs, settings, stop=stop).follow(limit):
            if as_json:
                click.echo(json.dumps(report.as_json()))
            else:
                click.echo(f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S %Z}")
                _print(report)
                click.echo()
    click.echo("pm: stopped on request", err=True)


def _stop_requested() -> AbstractContextManager[threading.Event]:
    """Set by Ctrl-C or SIGTERM. Only a process that is `pm` takes signals; a caller's stay the caller's."""
    if connections.invocation().owns_process:
        return stop_on_signal(_say_stopping)
    return nullcontext(threading.Event())


def _say_stopping() -> None:
    # The progress bar hides the cursor, and a second Ctrl-C leaves no time to show it again.
    cursor = "\x1b[?25h" if sys.stderr.isatty() else ""
    with suppress(OSError):
        text = f"{cursor}pm: stopping after the answers to the calls under way (Ctrl-C once more ends at once)\n"
        os.write(sys.stderr.fileno(), text.encode())


def _total(control: ControlPlane, read: int, limit: int) -> int:
    """How many rows the bar counts to: those that were read, and where more may wait, all that do."""
    if read < min(limit, READ_AT_ONCE) or not console(stderr=True).is_terminal:
        return read
    return max(read, min(limit, control.backlog().ready))


@contextmanager
def _progress(total: int) -> Iterator[Callable[[RowOutcome], None]]:
    to = console(stderr=True)
    if not to.is_terminal:
        yield lambda _outcome: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415

    columns = (TextColumn("dispatching"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=to, transient=True) as bar:
        task = bar.add_task("", total=total)

        def seen(_outcome: RowOutcome) -> None:
            # Rows that came meanwhile are more than were counted.
            done = int(bar.tasks[0].completed) + 1
            bar.update(task, completed=done, total=max(total, done))

        yield seen


def _print(report: Report) -> None:
    out = console()
    rows = sorted(report.rows, key=lambda row: (_ORDER.index(row.outcome), row.run_id or 0))
    if rows:
        out.print(table(_COLUMNS, rows[:_SHOWN]))
        if len(rows) > _SHOWN:
            more = Counter(row.outcome.value for row in rows[_SHOWN:])
            counts = ", ".join(f"{number} {outcome}" for outcome, number in more.items())
            out.print(f"({len(rows) - _SHOWN} more are not shown: {counts})")
        out.print()
    out.print(_summary(report))


def _print_idle(backlog: Backlog, settings: Settings) -> None:
    view = f"{settings.schema}.{settings.wait_view}"
    if any((backlog.untakeable, backlog.locked, backlog.in_hand, backlog.backing_off, backlog.ready)):
        for line in ("Nothing was dispatched.", *backlog_lines(backlog, view)):
            console().print(line)
    else:
        console().print(f"Nothing waits in {view}.")


def _summary(report: Report) -> str:
    parts = [f"{report.read} read", f"{report.scheduled} scheduled"]
    parts += [
        f"{count} {word}"
        for word, count in (
            ("refused", sum(row.outcome is Outcome.QUARANTINED for row in report.rows)),
            ("put off", report.left + sum(row.outcome is Outcome.DEFERRED for row in report.rows)),
            ("rescued from a dispatcher that ended", report.rescued),
        )
        if count
    ]
    throttled = f" ({report.throttled} throttled)" if report.throttled else ""
    return f"{', '.join(parts)}; {counted(report.calls, 'call')}{throttled} in {duration(report.seconds)}."
