"""Makes docs/proof.md of what the long tests recorded: ``python -m pm_dagster_tests.chaos.report FOLDER``.

Put here: the page. Keep out: counting. All but the figures is the same in every run, so that a diff shows a change.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pm_dagster_tests.chaos.boundaries import Boundary
from pm_dagster_tests.chaos.faults import CALLS, FAULTS
from pm_dagster_tests.chaos.matrix import TABLE, VARIANTS, Cell, varied
from pm_dagster_tests.chaos.oracle import PROMISES
from pm_dagster_tests.chaos.records import Record, read

PAGE = Path(__file__).parents[2] / "docs" / "proof.md"
NOT_RUN = "not run"
_OWN = ("matrix", "variants", "recovery")
_BREACHES = frozenset(PROMISES) | {"breaches", "broken"}

_HEAD = """# The proof

Made by `make chaos`, which runs it and writes this page; do not edit it. {tried}

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

Each cell: how often one of the promises above was broken, and which. n/a: the reason stands below the table.
"""


def page(records: Sequence[Record]) -> str:
    """The whole page."""
    known = {(record.suite, record.name): record for record in records}
    run = [record for record in records if record.suite in ("matrix", "variants")]
    rows = max((record.counts.get("rows", 0) for record in run), default=0)
    tried = f"{len(run)} cells and {len(records) - len(run)} longer trials stand in it."
    parts = [
        _HEAD.format(tried=tried, rows=rows, promises="\n".join(_promises(records))),
        *(_matrix(call, known) for call in CALLS),
        _variants(known),
        _trials("Recovery", [record for record in records if record.suite == "recovery"]),
    ]
    others = sorted({record.suite for record in records} - set(_OWN))
    parts += [_trials(suite.capitalize(), [record for record in records if record.suite == suite]) for suite in others]
    parts.append(_machine())
    return "\n".join(parts)


def incomplete(records: Sequence[Record]) -> list[str]:
    """The cells of the plain matrix and its variants that no record speaks of."""
    known = {(record.suite, record.name) for record in records}
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
    reasons: dict[str, str] = {}
    for fault in FAULTS:
        cells = [Cell(fault, call, boundary) for boundary in Boundary]
        reasons |= {cell.fault.name: cell.without_meaning for cell in cells if cell.without_meaning}
        lines.append(_line([fault.name, *(_cell(cell, known) for cell in cells)]))
    by_reason: dict[str, list[str]] = {}
    for name, why in reasons.items():
        by_reason.setdefault(why, []).append(name)
    notes = [f"* n/a, {why}: {'; '.join(names)}." for why, names in by_reason.items()]
    return "\n".join([*lines, "", *notes, ""])


def _cell(cell: Cell, known: dict[tuple[str, str], Record]) -> str:
    if cell.without_meaning:
        return "n/a"
    record = known.get((_suite(cell), cell.name))
    if record is None:
        return NOT_RUN
    broken = [f"{_words(name)} {record.counts[name]}" for name in PROMISES if record.counts.get(name)]
    return ", ".join(broken) or "0"


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
    records = read(Path(sys.argv[1]))
    PAGE.write_text(page(records), encoding="utf-8")
    missing = incomplete(records)
    broken = [f"{record.suite}: {record.name}" for record in records if breaches(record)]
    for name in missing:
        sys.stderr.write(f"{NOT_RUN}: {name}\n")
    for name in broken:
        sys.stderr.write(f"broken: {name}\n")
    sys.exit(1 if missing or broken else 0)


if __name__ == "__main__":
    main()
