"""What the programs wrote, a file for each task run.

Output may hold secrets that a program printed, so only the owner can read it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

# get-output gives the last 5 MB (databricks-sdk 0.60, service/jobs.py, RunOutput.logs).
LIMIT = 5 * 1024 * 1024
_CONTINUES = bytes(range(0x80, 0xC0))


class Output:
    """The output of one task run while it is written."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._size = 0
        self._open(os.O_TRUNC)

    def write(self, chunk: bytes) -> None:
        """Append; whoever reads sees it at once."""
        self._stream.write(chunk)
        self._size += len(chunk)
        if self._size > 2 * LIMIT:
            self._cut()

    def close(self) -> None:
        """No more will come."""
        self._stream.close()

    def _open(self, how: int) -> None:
        descriptor = os.open(self._file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | how, 0o600)
        self._stream = os.fdopen(descriptor, "ab", buffering=0)

    def _cut(self) -> None:
        """Let go of the beginning, but keep a byte more than is shown: it says that something is missing."""
        self.close()
        kept = _end_of(self._file, LIMIT + 1)
        fresh = self._file.with_suffix(".new")
        fresh.touch(0o600)
        fresh.write_bytes(kept)
        fresh.replace(self._file)
        self._size = len(kept)
        self._open(0)


class Outputs:
    """The outputs in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def writer(self, task_run_id: int) -> Output:
        """A new output."""
        return Output(self._path(task_run_id))

    def read(self, task_run_id: int, most: int = LIMIT) -> tuple[str, bool]:
        """The last ``most`` bytes as text, and whether something came before them; empty without an output."""
        try:
            raw = _end_of(self._path(task_run_id), most + 1)
        except FileNotFoundError:
            return "", False
        cut = len(raw) > most
        return (raw[-most:].lstrip(_CONTINUES) if cut else raw).decode("utf-8", "replace"), cut

    def forget(self, task_run_ids: Iterable[int]) -> None:
        """Remove outputs."""
        for task_run_id in task_run_ids:
            self._path(task_run_id).unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove all outputs."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(mode=0o700, exist_ok=True)

    def _path(self, task_run_id: int) -> Path:
        return self._folder / f"{task_run_id}.log"


def _end_of(file: Path, most: int) -> bytes:
    with file.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - most))
        return stream.read(most)
