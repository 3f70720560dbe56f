"""The numbers that may be typed: what a column or a statement can hold. Keep out: what they mean."""

from __future__ import annotations

import click

from pm_dagster.config.settings import MOST_ROWS

#: Any number that a BIGINT can hold: a refused row may have an id that no row should have.
RUN_ID = click.IntRange(-(2**63), 2**63 - 1)
LIMIT = click.IntRange(1, MOST_ROWS)
#: 0 takes a free one.
PORT = click.IntRange(0, 65_535)
