"""Makes docs/proof.md of what the long tests recorded: ``python -m pm_dagster_tests.chaos.report FOLDER``.

Put here: the page. Keep out: counting. All but the figures and the stamp is the same in every run, so that a diff shows
a change.
"""

from __future__ import annotations

import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path

from pm_dagster_tests.chaos.boundaries import Boundary
from pm_dagster_tests.chaos.faults import CALLS, FAULTS
from pm_dagster_tests.chaos.matrix import TABLE, VARIANTS, Cell, varied
from pm_dagster_tests.chaos.oracle import PROMISES
from pm_dagster_tests.chaos.records import REQUESTS, Record, read
from pm_dagster_tests.chaos.stamp import Stamp, check_unchanged, kept, of_tree

PAGE = Path(__file__).parents[2] / "docs" / "proof.md"
NOT_RUN = "not run"
_OWN = ("matrix", "variants", "recovery")
_BREACHES = frozenset(PROMISES) | {"breaches", "broken"}

_HEAD = """# The proof

Made by `make chaos`, which runs it and writes this page; do not edit it. {tried}

{stamp}

Every cell is a real `pm dispatch` in a process of its own against a real Postgres server and the local workspace over
HTTP, with {rows} rows: two for new runs, two for repairs, one of these for a run that was repaired before. The fault
meets the first calls of its kind. A front between dispatch and server kills the process with SIGKILL at the exact
message that the boundary is; then later dispatches finish. Afterwards an oracle that shares no code with the product
counts, from an audit trigger on the control table, the workspace's own request log and runs, the ledger, and everything
that was written.

## Promises

| promise broken by | breaches |
| --- | --- |
{promises}

## The matrix

Each cell: how often one of the promises above was broken, and which, of how many requests to the workspace that the
oracle looked at. n/a: the reason stands below the table.
"""
_STAMP = "Proven on {date} at commit {commit} ({described}), version {version}."
_DIRTY = " THIS PROVES NOTHING: the tree had changes that are in no commit."
_CHECKSUM = "Checksum of this page: "


def page(records: Sequence[Record], stamp: Stamp) -> str:
    """The whole page."""
    known = {(record.suite, record.name): record for record in records}
    run = [record for record in records if record.suite in ("matrix", "variants")]
    # A fault may bring rows of its own.
    rows = min((record.counts.get("rows", 0) for record in run), default=0)
    tried = f"{len(run)} cells and {len(records) - len(run)} longer trials stand in it."
    parts = [
        _HEAD.format(tried=tried, stamp=_stamped(stamp), rows=rows, promises="\n".join(_promises(records))),
        *(_matrix(call, known) for call in CALLS),
        _variants(known),
        _trials("Recovery", [record for record in records if record.suite == "recovery"]),
    ]
    others = sorted({record.suite for record in records} - set(_OWN))
    parts += [_trials(suite.capitalize(), [record for record in records if record.suite == suite]) for suite in others]
    parts.append(_machine())
    text = "\n".join(parts)
    return f"{text}\n{_CHECKSUM}{_checksum(text)}\n"


def flaws(text: str) -> list[str]:
    """What keeps a page from being one that ``make chaos`` wrote and nobody edited; empty for a good one."""
    body, found, checksum = text.rpartition(f"\n{_CHECKSUM}")
    edited = not found or checksum.strip() != _checksum(body)
    told = [] if not edited else ["its checksum is not that of its text: it was edited, or not made by `make chaos`"]
    pattern = r"^" + re.escape(_STAMP).replace(r"\{", "{").replace(r"\}", "}") + r"(.*)$"
    stamped = re.search(
        pattern.format(date=r"\d{4}-\d\d-\d\d", commit=r"[0-9a-f]{40}", described=r"[^()\s]+", version=r"\S+"),
        text,
        re.MULTILINE,
    )
    told += [] if stamped else ["it does not say of which commit, version and day it is"]
    told += ["it is of a tree with changes that are in no commit"] if stamped and stamped.group(1) else []
    return told


def _stamped(stamp: Stamp) -> str:
    said = _STAMP.format(date=stamp.date, commit=stamp.commit, described=stamp.described, version=stamp.version)
    return said + (_DIRTY if stamp.changes else "")


def _checksum(text: str) -> str:
    return sha256(text.encode()).hexdigest()


def incomplete(records: Sequence[Record]) -> list[str]:
    """The cells of the plain matrix and its variants that no record speaks of, or one in which nothing was asked."""
    known = {(record.suite, record.name) for record in records if record.figures.get(REQUESTS, 0) > 0}
    cells = [cell for cell in TABLE.cells if not cell.without_meaning] + list(varied())
    return [cell.name for cell in cells if (_suite(cell), cell.name) not in known]


def breaches(record: Record) -> int:
    """How many breaches of promises one record holds."""
    return sum(count for name, count in record.counts.items() if name in _BREACHES)


def _suite(cell: Cell) -> str:
    return "variants" if cell.variant else "matrix"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _promises(records: Iterable[Record]) -> Iterator[str]:
    totals: Counter[str] = Counter()
    for record in records:
        totals.update({name: count for name, count in record.counts.items() if name in PROMISES})
    for name, meaning in PROMISES.items():
        yield f"| {_words(name)}: {meaning} | {totals[name]} |"


def _matrix(call: str, known: dict[tuple[str, str], Record]) -> str:
    lines = [f"### {call}", "", _line(["fault", *(boundary.value for boundary in Boundary)]), _rule(len(Boundary) + 1)]
    by_reason: dict[str, dict[str, None]] = {}
    for fault in FAULTS:
        cells = [Cell(fault, call, boundary) for boundary in Boundary]
        for cell in cells:
            if cell.without_meaning:
                by_reason.setdefault(cell.without_meaning, {})[fault.name] = None
        lines.append(_line([fault.name, *(_cell(cell, known) for cell in cells)]))
    notes = [f"* n/a, {why}: {'; '.join(names)}." for why, names in by_reason.items()]
    return "\n".join([*lines, "", *notes, ""])


def _cell(cell: Cell, known: dict[tuple[str, str], Record]) -> str:
    if cell.without_meaning:
        return "n/a"
    record = known.get((_suite(cell), cell.name))
    if record is None or not record.figures.get(REQUESTS):
        return NOT_RUN
    broken = [f"{_words(name)} {record.counts[name]}" for name in PROMISES if record.counts.get(name)]
    return f"{', '.join(broken) or '0'} of {record.figures[REQUESTS]:.0f}"


def _variants(known: dict[tuple[str, str], Record]) -> str:
    lines = [
        "## Where the workspace's behaviour is not known",
        "",
        "The faults after which it is unknown what took effect, again under each variant of the workspace.",
        "",
        _line(["variant", "cells", "breaches"]),
        _rule(3),
    ]
    for variant in VARIANTS:
        cells = [cell for cell in varied() if cell.variant == variant]
        found = [known[_suite(cell), cell.name] for cell in cells if (_suite(cell), cell.name) in known]
        run = str(len(found)) if len(found) == len(cells) else f"{len(found)} of {len(cells)}, others {NOT_RUN}"
        lines.append(_line([variant, run, str(sum(breaches(record) for record in found))]))
    return "\n".join([*lines, ""])


def _trials(title: str, records: Iterable[Record]) -> str:
    lines = [f"## {title}", "", _line(["trial", "of", "breaches", "measured"]), _rule(4)]
    for record in records:
        size = ", ".join(
            f"{_words(name)} {count}" for name, count in sorted(record.counts.items()) if name not in _BREACHES
        )
        figures = "; ".join(
            f"{_words(name)}: {value:.1f}".removesuffix(".0") for name, value in sorted(record.figures.items())
        )
        name = f"{record.name}: {record.note}" if record.note else record.name
        lines.append(_line([name, size, str(breaches(record)), figures]))
    return "\n".join([*lines, ""])


def _machine() -> str:
    return f"Measured on a machine with {os.cpu_count()} cores, the workers of the suite sharing them.\n"


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"


def _rule(columns: int) -> str:
    return _line(["---"] * columns)


def main() -> None:
    """Write the page from the folder that the command line names; say what is missing or broken, by exit status 1."""
    records, stamp = read(Path(sys.argv[1])), kept(Path(sys.argv[1]))
    check_unchanged(stamp, of_tree())
    PAGE.write_text(page(records, stamp), encoding="utf-8")
    missing = incomplete(records)
    broken = [f"{record.suite}: {record.name}" for record in records if breaches(record)]
    for name in missing:
        sys.stderr.write(f"{NOT_RUN}: {name}\n")
    for name in broken:
        sys.stderr.write(f"broken: {name}\n")
    sys.exit(1 if missing or broken else 0)


if __name__ == "__main__":
    main()
