"""How the commands print: one JSON object, or texts and tables that read well at 100 columns.

Every number, time and duration that a person reads is written here, the same in all commands.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Generic, TypeVar

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pm_dagster.cli import connections
from pm_dagster.dispatch.ports import Backlog
from pm_dagster.dispatch.untakeable import Untakeable
from pm_dagster.text import counted, escape_controls

Item = TypeVar("Item")

_WIDTH_WITHOUT_TERMINAL = 100
#: Shorter durations have two digits after the point.
_WHOLE_SECONDS = 10.0
#: Narrower, a table would be a column of single letters.
_NARROWEST = 40
_DEL = "\x7f"
_STYLES = {
    "accepted": "green",
    "SCHEDULED": "green",
    "SUCCESS": "green",
    "adopted": "cyan",
    "deferred": "yellow",
    "DEFERRED": "yellow",
    "quarantined": "red",
    "QUARANTINED": "red",
    "FAILED": "red",
    "withdrawn": "dim",
    "WITHDRAWN": "dim",
}


@dataclass(frozen=True)
class Column(Generic[Item]):
    """A column of a table.

    Attributes:
        title: Its heading.
        value: What it shows of an item.
        right: Whether it is aligned to the right, as numbers are.
        folds: Whether its values may be folded onto several lines; others are cut.
    """

    title: str
    value: Callable[[Item], object]
    right: bool = False
    folds: bool = False


class Screen(Console):
    """A console on which a text is nothing but text: no markup, no control characters, whatever it holds."""

    def print(self, *objects: Any, **options: Any) -> None:  # noqa: ANN401 the base class's own signature
        """Print; texts are made visible first. Use ``text`` for one with a style."""
        super().print(*(text(each) if isinstance(each, str) else each for each in objects), **options)


def text(value: str, style: str = "") -> Text:
    """A text from anywhere, fit for a terminal."""
    return Text(escape_controls(value), style=style)


def console(*, stderr: bool = False) -> Screen:
    """A console for people; where there is no terminal, wide enough for a table."""
    stream = sys.stderr if stderr else sys.stdout
    environment = connections.invocation().environment
    shown = Screen(stderr=stderr, highlight=False, markup=False, emoji=False, _environ=environment)
    if not stream.isatty():
        shown.width = _WIDTH_WITHOUT_TERMINAL
    elif shown.width < _NARROWEST:
        shown.width = _NARROWEST
    return shown


def print_json(value: object) -> None:
    """Print one JSON object; times in ISO 8601, ids as integers, what does not print as escapes."""
    as_they_are = (getattr(sys.stdout, "encoding", None) or "").lower().startswith("utf")
    text_ = json.dumps(value, default=_plain, ensure_ascii=not as_they_are)
    click.echo(text_ if text_.isprintable() else "".join(map(_escaped, text_)))


def _escaped(char: str) -> str:
    """JSON's own escape: outside of texts, the encoder writes only what prints."""
    return char if char.isprintable() else "\\u007f" if char == _DEL else json.dumps(char)[1:-1]


def _plain(value: object) -> object:
    return value.isoformat() if isinstance(value, datetime) else _shown(value)


def table(columns: Sequence[Column[Item]], items: Iterable[Item], title: str | None = None) -> Table:
    """A table with a row for each item; None is shown as nothing."""
    result = Table(
        title=title and escape_controls(title),
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
        header_style="bold",
    )
    for column in columns:
        result.add_column(
            column.title,
            justify="right" if column.right else "left",
            overflow="fold" if column.folds else "ellipsis",
            no_wrap=not column.folds,
        )
    for item in items:
        result.add_row(*(_cell(column.value(item)) for column in columns))
    return result


def print_table(
    out: Screen, columns: Sequence[Column[Item]], items: Sequence[Item], title: str, total: int | None = None
) -> None:
    """A table under a blank line; where there are ``total`` of them and fewer are given, it says so."""
    out.print()
    if not items:
        out.print(f"{title}: none")
        return
    out.print(table(columns, items, title))
    if total is not None and total > len(items):
        out.print(f"({total - len(items)} more are not shown)")


def _cell(value: object) -> Text:
    if value is None:
        return Text("")
    if isinstance(value, datetime):
        return Text(moment(value))
    words = _shown(value)
    return text(words, _STYLES.get(words, ""))


def _shown(value: object) -> str:
    """Bytes as Postgres writes them, not as an object's place in memory."""
    return f"\\x{bytes(value).hex()}" if isinstance(value, (bytes, memoryview)) else str(value)


def moment(value: datetime | None) -> str:
    """A time to the second, as ``pm redrive --since`` takes it; with its zone where it has one."""
    if value is None:
        return ""
    zone = "" if value.tzinfo is None else "Z" if value.utcoffset() == timedelta() else f"{value:%z}"
    return f"{value:%Y-%m-%d %H:%M:%S}{zone}"


def duration(seconds: float | None) -> str:
    """A duration as a person says it; nothing where there is none."""
    if seconds is None:
        return ""
    for size, unit in ((86400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s" if seconds >= _WHOLE_SECONDS else f"{max(seconds, 0.0):.2f} s"


UNRESOLVED = "left by a dispatcher that ended; a dispatch first finds out what their calls did"
UNTAKEABLE_TITLE = "Rows that the view shows and no dispatch can take"
UNTAKEABLE_COLUMNS: tuple[Column[Untakeable], ...] = (
    Column("run id", lambda row: row.run_id, right=True),
    Column("why", lambda row: row.reason, folds=True),
    Column("what to do", lambda row: row.remedy, folds=True),
)


def backlog_lines(backlog: Backlog, view: str) -> list[str]:
    """How many rows of the view can be dispatched now, and how many cannot and why: a line each."""
    oldest = f", the oldest for {duration(backlog.oldest_seconds)}" if backlog.oldest_seconds is not None else ""
    lines = [f"{counted(backlog.ready, 'row')} of {view} can be dispatched now{oldest}."]
    lines += [
        f"  {number} {state}"
        for number, state in (
            (backlog.extra.get("unresolved", 0), UNRESOLVED),
            (backlog.in_hand, "in a dispatch that is running"),
            (backlog.backing_off, "put off until their time comes (`pm explain RUN_ID` shows it)"),
            (backlog.quarantined, "refused, and still shown by the view"),
            (backlog.locked, "locked by another session; a dispatch takes them once the locks are released"),
            (backlog.untakeable, "that no dispatch can take (`pm status` shows why)"),
        )
        if number
    ]
    return lines
