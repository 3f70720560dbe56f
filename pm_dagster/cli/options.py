"""Options and values that several commands take."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime
from typing import Any

import click

from pm_dagster.config.settings import MOST_ROWS


class Number(click.ParamType):  # type: ignore[type-arg]  # generic only in newer versions of click
    """A whole number within bounds, which help calls by its name."""

    def __init__(self, name: str, least: int, most: int) -> None:
        self.name = name
        self._least = least
        self._most = most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:  # noqa: ANN401 click's own signature
        """The number; fails with the bounds."""
        number = None
        with suppress(ValueError):
            number = int(value)
        if number is None or not self._least <= number <= self._most:
            self.fail(f"{value!a} is not a whole number from {self._least} to {self._most}.", param, ctx)
        return number


class Time(click.ParamType):  # type: ignore[type-arg]  # generic only in newer versions of click
    """A time in ISO 8601, with or without a zone."""

    name = "TIME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:  # noqa: ANN401 click's own signature
        """The time; fails with examples."""
        if isinstance(value, datetime):
            return value
        try:
            return datetime.fromisoformat(value.strip())
        except ValueError:
            examples = "2026-03-28, 2026-03-28T14:30 or 2026-03-28T14:30+01:00"
            self.fail(f"{value!a} is not a time; write it as {examples}.", param, ctx)


#: Any number that a BIGINT can hold: a refused row may have an id that no row should have.
RUN_ID = Number("RUN_ID", -(2**63), 2**63 - 1)
JOB_ID = Number("JOB_ID", -(2**63), 2**63 - 1)
LIMIT = Number("ROWS", 1, MOST_ROWS)
#: 0 takes a free one.
PORT = Number("PORT", 0, 65_535)
TIME = Time()

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
limit_option = click.option("--limit", type=LIMIT, help="Take at most this many rows, oldest first.")
