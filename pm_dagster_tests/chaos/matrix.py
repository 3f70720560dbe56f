"""The fault matrix: which cells there are, which have no meaning, and a few that meet everything.

Put here: the table. Keep out: running a cell (``cell.py``) and telling of it (``report.py``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from pm_dagster_tests.chaos.boundaries import Boundary
from pm_dagster_tests.chaos.faults import CALLS, FAULTS, Fault

#: What nobody has established about the real service, and how long what was started runs: each of these is tried with
#: the faults after which it is unknown what took effect.
VARIANTS: Mapping[str, Mapping[str, object]] = {
    "repairs show in the history after 3 reads": {"history_lag_reads": 3},
    "the whole run lags by 3 reads": {"history_lag_reads": 3, "stale_scope": "run"},
    "the whole run lags by 7 reads": {"history_lag_reads": 7, "stale_scope": "run"},
    "refusals are 409 INVALID_STATE": {
        "repair_refusal_status": 409, "repair_refusal_code": "INVALID_STATE", "stale_repair_id_code": "INVALID_STATE"
    },
    "a first repair that names an id is refused": {"first_repair_with_id": "refuse"},
    "the original is in the history with an id": {"original_has_id": True},
    "a run that is gone is a 404": {"unknown_run_status": 404},
    "what was started fails at once": {"seconds": 0.0, "outcome": "fail"},
    "what was started succeeds at once": {"seconds": 0.0, "outcome": "succeed"},
}  # fmt: skip
#: Under these even a repair that was never sent is refused until the run shows what it is: such a row may end FAILED,
#: with that reason. One whose repair runs may not.
REFUSING = frozenset({"the whole run lags by 7 reads"})
#: What is tried where calls were submitted ahead: the faults after which it is unknown what took effect, and a 429.
_AHEAD_FAULTS = (
    *("reset, before", "reset, after", "503, after", "hang past the time-out, after"),
    "429, Retry-After 1",
)
_VARIED_FAULTS = ("reset, after", "hang past the time-out, before", "hang past the time-out, after", "503, after")
_VARIED_BOUNDARIES = (Boundary.NONE, Boundary.AFTER_INTENT, Boundary.AFTER_REPLY)


@dataclass(frozen=True)
class Cell:
    """One fault at one call with one death, under one variant of the workspace."""

    fault: Fault
    call: str
    boundary: Boundary
    variant: str = ""

    @property
    def name(self) -> str:
        """The cell's name in the records."""
        return " | ".join(part for part in (self.fault.name, self.call, self.boundary.value, self.variant) if part)

    @property
    def without_meaning(self) -> str:
        """Why the cell is not run; empty for one that is."""
        if self.call not in self.fault.only:
            return self.fault.why
        if self.boundary is Boundary.SUBMITTED_AHEAD and self.call == "runs/get":
            return "a look-up has no intent"
        if self.boundary is Boundary.SUBMITTED_AHEAD and self.fault.name not in _AHEAD_FAULTS:
            return "tried with the faults after which it is unknown what took effect, and with a 429"
        after_a_look_up = self.call == "runs/get" and self.boundary is Boundary.AFTER_INTENT
        if after_a_look_up and (self.fault.stops or self.fault.announces_no_repair):
            return "no repair is announced after it"
        return ""


@dataclass(frozen=True)
class Table:
    """All cells of the plain matrix."""

    cells: tuple[Cell, ...] = field(
        default_factory=lambda: tuple(
            Cell(fault, call, boundary) for fault in FAULTS for call in CALLS for boundary in Boundary
        )
    )

    def of(self, fault: Fault) -> list[Cell]:
        """The cells of one line that have a meaning."""
        return [cell for cell in self.cells if cell.fault is fault and not cell.without_meaning]


TABLE = Table()


def varied() -> Iterator[Cell]:
    """The cells under the variants of the workspace."""
    faults = [fault for fault in FAULTS if fault.name in _VARIED_FAULTS]
    for variant in VARIANTS:
        for fault in faults:
            for call in ("run-now", "runs/repair"):
                for boundary in _VARIED_BOUNDARIES:
                    yield Cell(fault, call, boundary, variant)


def covering() -> list[Cell]:
    """A few cells in which every fault and call, fault and boundary kind that has a meaning, call and boundary appear.

    Each fault once with each of its calls would be too many: every fault appears, and every pair of call and boundary.
    """
    missing = {(cell.call, cell.boundary) for fault in FAULTS for cell in TABLE.of(fault)}
    chosen = []
    for fault in FAULTS:
        cells = TABLE.of(fault)
        cell = next((each for each in cells if (each.call, each.boundary) in missing), cells[0])
        missing.discard((cell.call, cell.boundary))
        chosen.append(cell)
    for call, boundary in sorted(missing):
        chosen.append(next(c for f in FAULTS for c in TABLE.of(f) if (c.call, c.boundary) == (call, boundary)))
    return chosen


def telling() -> list[Cell]:
    """For the short form: the varied cells in which only the recorded intent tells what was started already."""
    told = ("what was started fails at once", "the whole run lags by 3 reads")
    return [
        cell
        for cell in varied()
        if cell.fault.name == "reset, after"
        and cell.call == "runs/repair"
        and cell.variant in told
        and cell.boundary is Boundary.AFTER_REPLY
    ]
