"""The calls of the adapter to meet hostile answers with, and a good answer to spoil. Keep out: hostile answers."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from pm_dagster.databricks.runs import SdkRuns
from pm_dagster.dispatch.model import read_whole

_SINCE = datetime(2024, 1, 1, tzinfo=UTC)
_FAILED = {"life_cycle_state": "INTERNAL_ERROR", "result_state": "FAILED"}
#: An answer about a run that failed.
RUN: dict[str, Any] = {"run_id": 7, "job_id": 3, "state": _FAILED, "repair_history": []}
#: Every call of the adapter, by name.
CALLS: dict[str, Callable[[SdkRuns], object]] = {
    "start": lambda runs: runs.start(1, {"A": "b"}, "t" * 64),
    "repair": lambda runs: runs.repair(7, {"A": "b"}, 5),
    "look_up": lambda runs: read_whole(runs.look_up(7)),
    "find_started": lambda runs: read_whole(runs.find_started(1, _SINCE, {"A": "b"})),
    "check": lambda runs: runs.check(),
    "job_name": lambda runs: runs.job_name(1),
}
