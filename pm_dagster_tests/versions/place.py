"""Where the versions of databricks-sdk are, and which there are. Put here: paths. Keep out: making them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
_LOCKS = Path(__file__).parent
#: The oldest that is supported and the cluster's; what is locked; the last and the first of two forms of service class.
NAMES = ("0.30", "0.60", "0.82", "0.83", "newest")


def folder(name: str) -> Path:
    """Where the version of that name is installed, with all that it requires and nothing else."""
    return ROOT / ".versions" / name


def locked(name: str) -> str:
    """The version's whole number."""
    text = (_LOCKS / f"{name}.lock").read_text(encoding="utf-8")
    (found,) = re.findall(r"^databricks-sdk==([0-9.]+)", text, re.MULTILINE)
    return str(found)
