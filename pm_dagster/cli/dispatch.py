"""``pm dispatch``: one pass without Dagster. Put here: progress and the table. Keep out: the pass itself."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING

import click

from pm_dagster.cli import connections
from pm_dagster.cli.numbers import LIMIT
from pm_dagster.cli.output import Column, console, json_option, print_json, table
from pm_dagster.dispatch.model import Outcome, RowOutcome
from pm_dagster.dispatch.report import Report
from pm_dagster.dispatch.service import Dispatch
from pm_dagster.stop_signals import stop_on_signal

if TYPE_CHECKING:
    from pm_dagster.config.settings import Settings

_COLUMNS = (
    Column("run id", right=True),
    Column("branch"),
    Column("outcome"),
    Column("status"),
    Column("reason", folds=True),
)
#: What needs eyes comes first.
_ORDER = (Outcome.QUARANTINED, Outcome.DEFERRED, Outcome.WITHDRAWN, Outcome.ADOPTED, Outcome.ACCEPTED)
_SHOWN = 60


@click.command("dispatch")
@click.option("--limit", type=LIMIT, help="Take at most this many rows, oldest first.")
@json_option
def command(limit: int | None, *, as_json: bool) -> None:
    """Do one pass: start or repair what waits, and mark it SCHEDULED.

    Ctrl-C or SIGTERM ends the pass cleanly: calls in flight are awaited and recorded, the rest stays WAITING.
    Ctrl-C once more ends it at once: what was in flight is found out by the next dispatch.
    """
    settings = connections.settings()
    runs = connections.workspace_runs(settings)
    with connections.control_plane(settings) as control:
        # Until here nothing is at stake, and a signal simply ends the program.
        rows = control.waiting(limit or settings.dispatch_limit)
        with _stop_requested() as stop, _progress(len(rows)) as seen:
            report = Dispatch(control, runs, settings, stop=stop, on_outcome=seen).run(limit, rows)
        idle = None if report.rows or report.left or as_json else control.backlog()
    if stop.is_set():
        click.echo(f"pm: stopped on request; {report.left} claimed rows were given back", err=True)
    if as_json:
        print_json(report.as_json())
    else:
        _print(report, settings)
        if idle is not None and (idle.untakeable or idle.locked):
            words = f"{idle.untakeable} rows that the view shows can be taken by no dispatch, {idle.locked} are locked"
            console().print(f"{words}; `pm status` says why.")


def _stop_requested() -> AbstractContextManager[threading.Event]:
    """Set by Ctrl-C or SIGTERM. Only a process that is `pm` takes signals; a caller's stay the caller's."""
    if connections.invocation().owns_process:
        return stop_on_signal(_say_stopping)
    return nullcontext(threading.Event())


def _say_stopping() -> None:
    # The progress bar hides the cursor, and a second Ctrl-C leaves no time to show it again.
    cursor = "\x1b[?25h" if sys.stderr.isatty() else ""
    with suppress(OSError):
        text = f"{cursor}pm: stopping; calls in flight are awaited (Ctrl-C once more ends at once)\n"
        os.write(sys.stderr.fileno(), text.encode())


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
        yield lambda _outcome: bar.advance(task)


def _print(report: Report, settings: Settings) -> None:
    out = console()
    rows = sorted(report.rows, key=lambda row: (_ORDER.index(row.outcome), row.run_id or 0))
    if rows:
        cells = [(r.run_id, r.branch.value, r.outcome.value, r.control_status, r.reason) for r in rows[:_SHOWN]]
        out.print(table(_COLUMNS, cells))
        if len(rows) > _SHOWN:
            out.print(f"... and {len(rows) - _SHOWN} more, all {rows[-1].outcome.value} or better")
        out.print()
    out.print(_summary(report, settings))


def _summary(report: Report, settings: Settings) -> str:
    if not report.rows and not report.left:
        return f"Nothing waits in {settings.schema}.{settings.wait_view}."
    parts = [f"{report.read} read", f"{report.scheduled} scheduled"]
    parts += [
        f"{count} {word}"
        for word, count in (
            ("refused", sum(row.outcome is Outcome.QUARANTINED for row in report.rows)),
            ("left for later", report.left + sum(row.outcome is Outcome.DEFERRED for row in report.rows)),
            ("taken over", report.rescued),
            ("answers 429", report.throttled),
        )
        if count
    ]
    return f"{', '.join(parts)}; {report.calls} calls in {report.seconds:.1f} s."
