"""Of which commit a proof is: ``python -m pm_dagster_tests.chaos.stamp FOLDER``, before the first trial.

Put here: what is known of the tree, and that it is in a commit as it stands. Keep out: the page (``report.py``).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[2]
_FILE = "stamp.json"
#: For who tries the proof out: the page then says that it proves nothing, and is not taken for the committed one.
ALLOW_DIRTY = "PROOF_OF_CHANGES"
#: What the proof itself writes.
_OWN = "docs/proof.md"


@dataclass(frozen=True)
class Stamp:
    """A tree: its commit, what git calls it, our version, and the day; ``changes`` are those in no commit."""

    commit: str
    described: str
    version: str
    date: str
    changes: tuple[str, ...] = ()


def of_tree(root: Path = ROOT) -> Stamp:
    """The tree as it is now. Ends the process with a message where it is no checkout."""
    if not (root / ".git").exists():
        sys.exit(f"{root} is no checkout of git: a proof says of which commit it is")
    changed = [line for line in _git(root, "status", "--porcelain").splitlines() if not line.endswith(f" {_OWN}")]
    return Stamp(
        commit=_git(root, "rev-parse", "HEAD"),
        described=_git(root, "describe", "--always", "--tags", "--abbrev=12"),
        version=version("process-manager"),
        date=datetime.now(UTC).date().isoformat(),
        changes=tuple(changed),
    )


def keep(folder: Path, stamp: Stamp) -> None:
    """Write it for ``kept``. Ends the process with a message for a tree with changes, unless that is allowed."""
    if stamp.changes and not os.environ.get(ALLOW_DIRTY):
        what = "\n".join(stamp.changes)
        sys.exit(f"commit first, or set {ALLOW_DIRTY}=true for a page that proves nothing; changed are:\n{what}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _FILE).write_text(json.dumps(asdict(stamp)), encoding="utf-8")


def kept(folder: Path) -> Stamp:
    """What ``keep`` wrote. Ends the process with a message where nothing was, for then nobody knows what was tried."""
    file = folder / _FILE
    if not file.exists():
        sys.exit(f"{file} is not there: it is written before the first trial, by `make chaos`")
    values = json.loads(file.read_text(encoding="utf-8"))
    return Stamp(**{**values, "changes": tuple(values["changes"])})


def check_unchanged(stamp: Stamp, now: Stamp) -> None:
    """End the process with a message when the trials ran on more than one tree."""
    if (stamp.commit, stamp.changes) != (now.commit, now.changes):
        sys.exit(f"the tree was {stamp.described} when the proof began and is {now.described} now, or was changed")


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)  # noqa: S607 the developer's git
    return done.stdout.rstrip("\n")


def main() -> None:
    """Write the stamp into the folder that the command line names."""
    keep(Path(sys.argv[1]), of_tree())


if __name__ == "__main__":
    main()
