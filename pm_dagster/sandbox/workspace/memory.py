"""What is kept: the tables of the workspace in memory, and the optional state file that outlives the process.

The state file has one JSON record per line, appended as things change and rewritten whole at the start.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from pm_dagster.sandbox.workspace.model import Job, Json, Run, job_from, run_from, to_record


class StateFile:
    """A file that remembers records over a restart."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> list[Json]:
        """All whole records, oldest first."""
        if not self._path.exists():
            return []
        records: list[Json] = []
        for line in self._path.read_text(encoding="utf-8").splitlines():
            try:
                records.append(json.loads(line))
            except ValueError:
                break
        return records

    def append(self, records: Iterable[Json]) -> None:
        """Add records in one write."""
        text = "".join(json.dumps(record) + "\n" for record in records)
        with open(self._path, "a", encoding="utf-8", opener=_private) as stream:
            stream.write(text)

    def replace(self, records: Iterable[Json]) -> None:
        """Write the file anew, atomically: a reader sees the old one or the new one."""
        fresh = self._path.with_name(self._path.name + ".new")
        with open(fresh, "w", encoding="utf-8", opener=_private) as stream:
            stream.writelines(json.dumps(record) + "\n" for record in records)
            stream.flush()
            os.fsync(stream.fileno())
        fresh.replace(self._path)


def _private(path: str, flags: int) -> int:
    """For us alone: the error of a task may quote a secret."""
    return os.open(path, flags, 0o600)


# Above 2**53 on purpose: an id that passes through a float anywhere comes back as another one.
FIRST_ID = 9_007_199_254_740_993
# The file grows by a line for each change; from here on most of its lines are out of date.
_WORTH_REWRITING = 5_000


class Memory:
    """Jobs, runs, tokens and deleted runs, loaded from the file when there is one."""

    def __init__(self, file: StateFile | None) -> None:
        self.jobs: dict[int, Job] = {}
        self.runs: dict[int, Run] = {}
        self.gone: dict[int, Run] = {}
        self.tokens: dict[str, int] = {}
        self.task_runs: dict[int, int] = {}
        self.forbidden: set[int] = set()
        self._next_id = FIRST_ID
        self._file = file
        self._appended = 0
        self._changed_jobs: set[int] = set()
        self._changed_runs: set[int] = set()
        self._changed_tokens: list[str] = []
        if file is not None:
            for record in file.load():
                self._replay(record)
            file.replace(self._snapshot())
            self._forget_changes()

    def new_id(self) -> int:
        """An id that nothing in the workspace has."""
        while True:
            number = self._next_id
            self._next_id += 2
            if not any(number in table for table in (self.jobs, self.runs, self.gone, self.task_runs)):
                return number

    def put_job(self, job: Job) -> None:
        """Add or change a job."""
        self.jobs[job.job_id] = job
        self._changed_jobs.add(job.job_id)

    def drop_job(self, job_id: int) -> None:
        """Remove a job."""
        self.jobs.pop(job_id, None)
        self._changed_jobs.add(job_id)

    def put_run(self, run: Run) -> None:
        """Add or change a run."""
        self.runs[run.run_id] = run
        for task in run.last.tasks:
            self.task_runs[task.run_id] = run.run_id
        self._changed_runs.add(run.run_id)

    def drop_run(self, run: Run) -> None:
        """Remove a run; what it was stays known to its token."""
        self.runs.pop(run.run_id, None)
        self.gone[run.run_id] = run
        self._changed_runs.add(run.run_id)

    def put_token(self, key: str, run_id: int) -> None:
        """Bind an idempotency token for ever."""
        self.tokens[key] = run_id
        self._changed_tokens.append(key)

    def clear(self) -> None:
        """Empty every table and the file."""
        for table in (self.jobs, self.runs, self.gone, self.tokens, self.task_runs):
            table.clear()
        self.forbidden.clear()
        self._forget_changes()
        if self._file is not None:
            self._file.replace(self._snapshot())

    def flush(self) -> None:
        """Append the rows that changed to the file."""
        if self._file is not None and (self._changed_jobs or self._changed_runs or self._changed_tokens):
            records = self._records(self._changed_jobs, self._changed_runs, self._changed_tokens)
            self._appended += len(records)
            if self._appended > _WORTH_REWRITING + 4 * len(self.runs):
                self._file.replace(self._snapshot())
                self._appended = 0
            else:
                self._file.append(records)
        self._forget_changes()

    def _forget_changes(self) -> None:
        self._changed_jobs.clear()
        self._changed_runs.clear()
        self._changed_tokens.clear()

    def _snapshot(self) -> list[Json]:
        return self._records(set(self.jobs), set(self.runs) | set(self.gone), list(self.tokens))

    def _records(self, job_ids: set[int], run_ids: set[int], keys: list[str]) -> list[Json]:
        records: list[Json] = [{"next_id": self._next_id}]
        for job_id in sorted(job_ids):
            job = self.jobs.get(job_id)
            records.append({"gone_job": job_id} if job is None else {"job": to_record(job)})
        for run_id in sorted(run_ids):
            if run_id in self.runs:
                records.append({"run": to_record(self.runs[run_id])})
            elif run_id in self.gone:
                records.append({"gone_run": to_record(self.gone[run_id])})
        records.extend({"token": [key, self.tokens[key]]} for key in keys)
        return records

    def _replay(self, record: Json) -> None:
        if "next_id" in record:
            self._next_id = max(self._next_id, int(record["next_id"]))
        elif "job" in record:
            self.put_job(job_from(record["job"]))
        elif "gone_job" in record:
            self.drop_job(int(record["gone_job"]))
        elif "run" in record:
            run = run_from(record["run"])
            self.put_run(run)
            self.task_runs.update({task.run_id: run.run_id for each in run.attempts for task in each.tasks})
        elif "gone_run" in record:
            self.drop_run(run_from(record["gone_run"]))
        elif "token" in record:
            self.tokens[str(record["token"][0])] = int(record["token"][1])
