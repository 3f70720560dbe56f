"""What the long tests found, kept as JSON lines so that the report can be made of it.

Put here: one record's fields, writing and reading. Keep out: what is counted (``oracle.py``) and how it is told
(``report.py``).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

#: The variable that names the folder; unset, nothing is written. Not PM_...: the tests' environment is cleared of it.
FOLDER = "PROOF_RECORDS"
#: The figure of a cell that says that something was tried in it: the requests that the workspace saw.
REQUESTS = "requests"


@dataclass(frozen=True)
class Record:
    """One thing that was tried: its suite, a name that is unique in it, what was counted and what was measured.

    ``counts`` are whole numbers that are the same in every run (0 breaches, 5000 rows); ``figures`` may differ from
    run to run (seconds). ``note`` is one sentence for people.
    """

    suite: str
    name: str
    counts: Mapping[str, int]
    figures: Mapping[str, float] = field(default_factory=dict)
    note: str = ""


def record(
    suite: str, name: str, counts: Mapping[str, int], figures: Mapping[str, float] | None = None, note: str = ""
) -> None:
    """Append a record to this process' file in the folder that the environment names; without one, do nothing."""
    folder = os.environ.get(FOLDER)
    if not folder:
        return
    line = json.dumps(asdict(Record(suite, name, dict(counts), dict(figures or {}), note)), sort_keys=True)
    Path(folder).mkdir(parents=True, exist_ok=True)
    with (Path(folder) / f"{os.getpid()}.jsonl").open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def read(folder: Path) -> list[Record]:
    """Every record in the folder, by suite and name; of two with the same name the one written later stands."""
    files = sorted(folder.glob("*.jsonl"), key=lambda file: file.stat().st_mtime)
    found = [Record(**json.loads(line)) for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    latest = {(each.suite, each.name): each for each in found}
    return [latest[key] for key in sorted(latest)]
