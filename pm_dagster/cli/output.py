"""How the commands print: one JSON object, or tables that read well at 100 columns.

Put here: the look of values. Keep out: what is printed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pm_dagster.cli import connections
from pm_dagster.text import escape_controls

_WIDTH_WITHOUT_TERMINAL = 100
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

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")


@dataclass(frozen=True)
class Column:
    """A column of a table: its title, and whether its values may be folded onto several lines."""

    title: str
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


def table(columns: Sequence[Column], rows: Sequence[Sequence[Any]], title: str | None = None) -> Table:
    """A table of rows; None is shown as nothing."""
    result = Table(
        title=title and escape_controls(title),
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
        header_style="bold",
    )
    for column in columns:
        overflow = "fold" if column.folds else "ellipsis"
        result.add_column(
            column.title,
            justify="right" if column.right else "left",
            overflow=overflow,  # type: ignore[arg-type]
            no_wrap=not column.folds,
            ratio=None,
        )
    for row in rows:
        result.add_row(*(_cell(value) for value in row))
    return result


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
    """A time to the second."""
    return "" if value is None else f"{value:%Y-%m-%d %H:%M:%S}"


def age(seconds: float | None) -> str:
    """A duration as a person says it."""
    if seconds is None:
        return "-"
    for size, unit in ((86400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{max(seconds, 0.0):.0f} s"
