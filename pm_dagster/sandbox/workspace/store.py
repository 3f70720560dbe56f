"""The optional state file: one JSON record per line, appended as things change, rewritten whole at the start.

Put here: reading, appending and replacing the file. Keep out: what the records mean. Appending keeps the cost of a
change independent of the number of runs; a line that was cut off by a crash is dropped when reading.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from pm_dagster.sandbox.workspace.model import Json


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
