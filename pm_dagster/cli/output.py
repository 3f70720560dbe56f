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

_WIDTH_WITHOUT_TERMINAL = 100
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


def console(*, stderr: bool = False) -> Console:
    """A console for people; where there is no terminal, wide enough for a table."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, highlight=False, width=None if stream.isatty() else _WIDTH_WITHOUT_TERMINAL)


def print_json(value: object) -> None:
    """Print one JSON object; times in ISO 8601, ids as integers."""
    click.echo(json.dumps(value, default=_plain, ensure_ascii=False))


def _plain(value: object) -> object:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def table(columns: Sequence[Column], rows: Sequence[Sequence[Any]], title: str | None = None) -> Table:
    """A table of rows; None is shown as nothing."""
    result = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="bold")
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
    text = str(value)
    return Text(text, style=_STYLES.get(text, ""))


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
