"""A row of the statement ``waiting`` as a raw row. Put here: the order of its columns. Keep out: what a value means."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from pm_dagster.core.settings import Settings
from pm_dagster.core.waiting_job import RawRow


def raw_row(values: Sequence[Any], settings: Settings) -> RawRow:
    """The row from the values that the driver made of its columns; a time without a zone is UTC."""
    run_id, in_table, order, job_id, job_run_id, *parameters = values
    names = [name for name, _ in settings.job_parameters]
    return RawRow(run_id, job_id, job_run_id, dict(zip(names, parameters, strict=True)), _moment(order), in_table)


def _moment(value: object) -> datetime | None:
    if not isinstance(value, datetime):
        return None
    return value if value.tzinfo else value.replace(tzinfo=UTC)
