"""What must never have happened, found out from first principles: the owner's table, the workspace, the output.

The audit of the control table, and the counts of a deployment that has come to rest. Production code stays out: an
oracle that asks the code under test proves nothing. The ledger is read only for what it owes a
person: a reason for each row that waits, and nothing open that nobody works on.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg2

from pm_dagster.sandbox.workspace import LocalWorkspace

#: What is counted, each with what a breach of it means. Every count must be 0.
PROMISES: Mapping[str, str] = {
    "duplicate_starts": "a waiting job and generation with more than one run or repair that took effect",
    "duplicate_repairs": "a known repair id from which more than one repair took effect",
    "lost": "a row that says it is scheduled and has no run or repair, or a row that is gone",
    "stuck": "a row that still waits, or an entry that is still open, though nothing is left to wait for",
    "unexplained": "a row that was refused or deferred without a reason, or closed without an event",
    "wrongly_failed": "a row that says FAILED though its run or repair exists",
    "refused": "a row that says FAILED though nothing refused it",
    "set_back": "a status that a dispatch wrote over another than WAITING",
    "wrong_run": "a row whose run id is not the run that was started for it",
    "leaked": "an artifact that holds a secret",
    "tracebacks": "an output with a traceback",
}
#: The name under which production code connects; what anybody else writes is the owner's business.
_PRODUCT = "process_manager"


@dataclass(frozen=True)
class Start:
    """A run-now or repair that took effect, as the workspace's own log has it."""

    row: int
    repaired_run: int | None
    known_repair: int | None
    at: float = 0.0


@dataclass
class Verdict:
    """The breaches by promise: row ids, or for what belongs to no row, words."""

    breaches: dict[str, list[int | str]] = field(default_factory=lambda: {name: [] for name in PROMISES})
    rows: int = 0
    starts: int = 0

    @property
    def counts(self) -> dict[str, int]:
        """How many breaches of each promise."""
        return {name: len(found) for name, found in self.breaches.items()}

    @property
    def clean(self) -> bool:
        """Whether every promise was kept."""
        return not any(self.breaches.values())

    def __str__(self) -> str:
        broken = {name: found for name, found in self.breaches.items() if found}
        return f"{self.rows} rows, {self.starts} starts, broken: {broken or 'nothing'}"


class Oracle:
    """Judges one deployment. ``secrets`` are the texts that no artifact may hold."""

    def __init__(self, database_url: str, workspace: LocalWorkspace, secrets: Iterable[str]) -> None:
        self._database_url = database_url
        self._workspace = workspace
        self._secrets = tuple(secret for secret in secrets if secret)

    def starts(self) -> list[Start]:
        """Every run and repair that began, in the order in which the workspace took the requests."""
        effects = self._workspace.log.entries(effect=True)
        return [_start(each.body, each.time) for each in effects if each.endpoint in ("run-now", "runs/repair")]

    def verdict(
        self,
        files: Iterable[Path] = (),
        *,
        may_wait: Iterable[int] = (),
        may_vanish: Iterable[int] = (),
        may_fail: Iterable[int] | None = None,
    ) -> Verdict:
        """Count, once everything has come to rest. ``files``: what the dispatches wrote.

        ``may_wait``: rows that may still be WAITING, with an open entry that says why. ``may_vanish``: rows that the
        test itself deleted. ``may_fail``: rows that may be FAILED, None for all.
        """
        allowed = Allowed(set(may_wait), set(may_vanish), None if may_fail is None else set(may_fail))
        judged = _Judgement(self._facts(), self.starts(), self._workspace, allowed)
        verdict = judged.verdict()
        for name, text in self._artifacts(files):
            if any(secret in text for secret in self._secrets):
                verdict.breaches["leaked"].append(name)
            if name.endswith((".out", ".err")) and "Traceback (most recent call last)" in text:
                verdict.breaches["tracebacks"].append(name)
        return verdict

    def _facts(self) -> _Facts:
        with closing(psycopg2.connect(self._database_url)) as connection, connection.cursor() as cursor:
            rows = _records(cursor, "SELECT to_jsonb(t) FROM mm_run_plc t ORDER BY run_id")
            entries = _records(cursor, "SELECT to_jsonb(e) FROM process_manager.entry e ORDER BY entry_id")
            changes = _records(cursor, "SELECT to_jsonb(c) FROM proof.change c ORDER BY number")
            told = _records(cursor, "SELECT to_jsonb(e) FROM (SELECT entry_id FROM process_manager.event GROUP BY 1) e")
        return _Facts({row["run_id"]: row for row in rows}, entries, changes, {each["entry_id"] for each in told})

    def _artifacts(self, files: Iterable[Path]) -> Iterator[tuple[str, str]]:
        for file in files:
            yield file.name, file.read_text(encoding="utf-8", errors="replace")
        for request in self._workspace.log.entries():
            yield f"request {request.number}", f"{request.path} {request.body}"
        tables = ("mm_run_plc", *(f"process_manager.{name}" for name in ("entry", "event", "dispatcher", "identity")))
        with closing(psycopg2.connect(self._database_url)) as connection, connection.cursor() as cursor:
            for table in tables:
                cursor.execute(f"SELECT t::text FROM {table} t")  # noqa: S608 the names stand above
                yield table, "\n".join(text for (text,) in cursor.fetchall())


@dataclass(frozen=True)
class Allowed:
    """What the test itself brought about: rows that may wait, be gone, or be FAILED (None: all)."""

    to_wait: set[int]
    to_vanish: set[int]
    to_fail: set[int] | None


@dataclass(frozen=True)
class _Facts:
    rows: dict[int, dict[str, Any]]
    entries: list[dict[str, Any]]
    changes: list[dict[str, Any]]
    told: set[int]


class _Judgement:
    """Holds the facts of one deployment against each promise."""

    def __init__(self, facts: _Facts, starts: list[Start], workspace: LocalWorkspace, allowed: Allowed) -> None:
        self._facts = facts
        self._starts = starts
        self._allowed = allowed
        self._runs = {run.run_id: run for run in workspace.state.runs()}
        self._of_row: dict[int, list[Start]] = defaultdict(list)
        for start in starts:
            self._of_row[start.row].append(start)

    def verdict(self) -> Verdict:
        verdict = Verdict(rows=len(self._facts.rows), starts=len(self._starts))
        found = verdict.breaches
        found["duplicate_starts"] = [row for row in self._of_row if self._started_too_often(row)]
        found["duplicate_repairs"] = self._repaired_twice()
        found["lost"] = self._gone() + [row for row in self._with_status("SCHEDULED") if not self._has_work(row)]
        found["stuck"] = self._waiting_without_reason() + self._open_entries()
        found["unexplained"] = self._unexplained()
        found["wrongly_failed"] = [row for row in self._with_status("FAILED") if self._exists(row)]
        may_fail = self._allowed.to_fail
        found["refused"] = [row for row in self._with_status("FAILED") if may_fail is not None and row not in may_fail]
        found["set_back"] = self._set_back()
        found["wrong_run"] = [row for row in self._with_status("SCHEDULED") if self._names_another_run(row)]
        return verdict

    def _with_status(self, status: str) -> list[int]:
        return [row for row, record in self._facts.rows.items() if record["run_sttus_name"] == status]

    def _started_too_often(self, row: int) -> bool:
        """Whether at any time more was started than had been asked for: a later request pays for no earlier start."""
        changes = [change for change in self._facts.changes if change["run_id"] == row]
        asked = [
            datetime.fromisoformat(c["at"]).timestamp()
            for c in changes
            if c["after"] == "WAITING" and c["before"] != "WAITING"
        ]
        started = sorted(start.at for start in self._of_row[row])
        return any(sum(moment <= at for moment in asked) < number for number, at in enumerate(started, start=1))

    def _repaired_twice(self) -> list[int | str]:
        known = Counter((s.repaired_run, s.known_repair) for s in self._starts if s.repaired_run is not None)
        return [f"run {run}, repair {repair}" for (run, repair), times in known.items() if times > 1]

    def _gone(self) -> list[int | str]:
        seen = {change["run_id"] for change in self._facts.changes}
        return [row for row in sorted(seen) if row not in self._facts.rows and row not in self._allowed.to_vanish]

    def _has_work(self, row: int) -> bool:
        """Whether something was started for the row, or its run is one that exists and was active or repaired."""
        if self._of_row[row]:
            return True
        run = self._runs.get(self._facts.rows[row]["wkf_job_run_id"] or 0)
        return run is not None and (run.last.active or run.last.repair_id is not None)

    def _exists(self, row: int) -> bool:
        """Whether what was started for the row is still there."""
        started = bool(self._of_row[row])
        return started and any(run.parameters.get("RUN_ID") == str(row) for run in self._runs.values())

    def _names_another_run(self, row: int) -> bool:
        """A row's run must be the one that carries its id, where such a run still exists."""
        named = self._facts.rows[row]["wkf_job_run_id"]
        mine = {run.run_id for run in self._runs.values() if run.parameters.get("RUN_ID") == str(row)}
        return bool(mine) and named not in mine

    def _waiting_without_reason(self) -> list[int | str]:
        newest = {entry["run_id"]: entry for entry in self._facts.entries}
        return [
            row
            for row in self._with_status("WAITING")
            if row not in self._allowed.to_wait or not (newest.get(row, {}).get("open") and newest[row].get("reason"))
        ]

    def _open_entries(self) -> list[int | str]:
        return [
            f"entry {entry['entry_id']} of row {entry['run_id']} is {entry['state']}"
            for entry in self._facts.entries
            if entry["open"] and entry["run_id"] not in self._allowed.to_wait
        ]

    def _unexplained(self) -> list[int | str]:
        entries = self._facts.entries
        silent = [entry["run_id"] for entry in entries if entry["entry_id"] not in self._facts.told]
        speaking = ("DEFERRED", "QUARANTINED", "SCHEDULED", "WITHDRAWN")
        silent += [entry["run_id"] for entry in entries if entry["state"] in speaking and not entry["reason"]]
        rows = self._facts.rows
        return silent + [row for row in self._with_status("FAILED") if not rows[row]["state_msg"]]

    def _set_back(self) -> list[int | str]:
        return [
            change["run_id"]
            for change in self._facts.changes
            if change["who"] == _PRODUCT and (change["before"] != "WAITING" or change["after"] == "WAITING")
        ]


def _start(request: str, at: float) -> Start:
    body = json.loads(request)
    row = int((body.get("job_parameters") or {}).get("RUN_ID", 0))
    return Start(row, body.get("run_id"), body.get("latest_repair_id"), at)


def _records(cursor: Any, query: str) -> list[dict[str, Any]]:  # noqa: ANN401 the driver's cursor
    cursor.execute(query)
    return [record for (record,) in cursor.fetchall()]
