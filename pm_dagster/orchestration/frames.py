"""What the ops hand to each other, as DataFrames: claimed entries and repair targets.

Put here: columns and their way back. Only ids travel between ops; the ledger has the rest and the last word.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd

from pm_dagster.dispatch.model import Entry, EntryState
from pm_dagster.dispatch.service import Claimed, RepairTarget
from pm_dagster.dispatch.waiting_job import Branch, sort_rows
from pm_dagster.waiting_frame import from_frame

_ENTRY = {
    "entry_id": "Int64",
    "run_id": "Int64",
    "generation": "Int64",
    "job_id": "Int64",
    "previous_run_id": "Int64",
    "taken_over": "bool",
}
_TARGET = {
    "entry_id": "Int64",
    "run_id": "Int64",
    "previous_run_id": "Int64",
    "latest_repair_id": "Int64",
    "fresh_run": "bool",
    "reason": "object",
    "run_job_id": "Int64",
    "page_url": "object",
}


def _frame(records: Sequence[dict[str, Any]], types: dict[str, str]) -> pd.DataFrame:
    # Column by column and through object: an id must never pass through a float.
    columns = {
        name: pd.Series([record[name] for record in records], dtype="object").astype(kind)  # type: ignore[call-overload]
        for name, kind in types.items()
    }
    return pd.DataFrame(columns)


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    rows = frame.astype(object).to_dict("records")
    return [{str(name): None if value is pd.NA else value for name, value in row.items()} for row in rows]


def entries_frame(entries: Sequence[Entry]) -> pd.DataFrame:
    """Claimed entries, by their ids."""
    return _frame([{name: getattr(entry, name) for name in _ENTRY} for entry in entries], _ENTRY)


def entry_ids(*frames: pd.DataFrame) -> list[int]:
    """The ids of the entries in the frames."""
    return [int(value) for frame in frames for value in frame["entry_id"]]


def targets_frame(targets: Sequence[RepairTarget]) -> pd.DataFrame:
    """Entries whose run was looked up, with the repair id that the call has to name."""
    return _frame([asdict(target) for target in targets], _TARGET)


def targets_from(frame: pd.DataFrame) -> list[RepairTarget]:
    """The targets that ``targets_frame`` was given."""
    return [RepairTarget(**record) for record in _records(frame)]


def claimed_from(waiting_jobs: pd.DataFrame, new: pd.DataFrame, repair: pd.DataFrame) -> Claimed:
    """What was claimed and refused, for the report; the entries carry their ids and nothing to send."""
    entries = {
        branch: [_entry(record, branch) for record in _records(frame)]
        for branch, frame in ((Branch.NEW, new), (Branch.REPAIR, repair))
    }
    _, refused = sort_rows(from_frame(waiting_jobs))
    inherited = sum(entry.taken_over for both in entries.values() for entry in both)
    return Claimed(entries[Branch.NEW], entries[Branch.REPAIR], refused, inherited)


def _entry(record: dict[str, Any], branch: Branch) -> Entry:
    return Entry(**record, branch=branch, state=EntryState.CLAIMED, parameters={}, idempotency_token="")
