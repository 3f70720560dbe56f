"""What a case of ``make bench`` is, how it is measured, and its results as a table and as JSON.

Every case takes its reference in the same trial, so that its ratios hold on any machine; its seconds hold on this one.
An aim that is missed is reported and fails nothing.
"""

from __future__ import annotations

import os
import platform
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import Any

from pm_dagster_tests.bench.place import Place

#: Above this load for each core, before a case begins, its figures are those of a busy machine.
_IDLE_LOAD = 0.5


@dataclass(frozen=True)
class Figure:
    """One figure of a case.

    Attributes:
        name: Its key in what the case measures.
        unit: Of its values; empty for ratios and counts.
        most: The aim: no trial is above.
        least: The aim: no trial is below.
        measured: For a ratio: the name of the figure that was measured.
        reference: The name of the figure that stands beside it, taken in the same trial.
    """

    name: str
    unit: str = ""
    most: float | None = None
    least: float | None = None
    measured: str = ""
    reference: str = ""

    @property
    def aim(self) -> str:
        """The aim as text, empty without one."""
        if self.most is not None:
            return f"<= {self.most:g}"
        return "" if self.least is None else f">= {self.least:g}"

    def reached(self, values: Sequence[float]) -> bool | None:
        """Whether every trial reaches the aim; None without one."""
        if not self.aim:
            return None
        return all(
            (self.most is None or value <= self.most) and (self.least is None or value >= self.least)
            for value in values
        )


@dataclass(frozen=True)
class Case:
    """One case.

    Attributes:
        name: By which it is chosen.
        what: What is measured, and beside which reference.
        aim: What must be reached, in words.
        figures: What ``measure`` gives, in the order of the table; those with an aim stand in the picture.
        measure: One trial. Raises RuntimeError when the work itself was not done.
        trials: How often it is measured.
        group: The heading under which it stands in the picture.
        shares: Neighbours with the same name keep what they started (``Place.held``) until the last of them is done.
        named: It is measured only when it is named.
    """

    name: str
    what: str
    aim: str
    figures: tuple[Figure, ...]
    measure: Callable[[Place], Mapping[str, float]]
    trials: int = 2
    group: str = "A dispatch"
    shares: str = ""
    named: bool = False


@dataclass
class Result:
    """What the trials of one case gave.

    Attributes:
        case: The case.
        trials: The figures of each trial, by name.
        load: The load of the machine (1 minute) before the first trial.
        failed: Why the work of a trial was not done; then there are no figures.
    """

    case: Case
    trials: list[dict[str, float]] = field(default_factory=list)
    load: float = 0.0
    failed: str = ""

    def values(self, figure: Figure) -> list[float]:
        """The figure in each trial."""
        return [trial[figure.name] for trial in self.trials]

    @property
    def reached(self) -> bool | None:
        """Whether all aims of the case are reached; None where it has none."""
        if self.failed:
            return False
        found = [figure.reached(self.values(figure)) for figure in self.case.figures if figure.aim]
        return all(found) if found else None

    def as_json(self) -> dict[str, Any]:
        """The case and its figures, each with its values, their median and their spread (largest less smallest)."""
        return {
            "name": self.case.name,
            "group": self.case.group,
            "what": self.case.what,
            "aim": self.case.aim,
            "reached": self.reached,
            "load": round(self.load, 2),
            "failed": self.failed,
            "figures": [] if self.failed else [self._figure(figure) for figure in self.case.figures],
        }

    def _figure(self, figure: Figure) -> dict[str, Any]:
        values = self.values(figure)
        return {
            "name": figure.name,
            "unit": figure.unit,
            "most": figure.most,
            "least": figure.least,
            "measured": figure.measured,
            "reference": figure.reference,
            "reached": figure.reached(values),
            "values": [round(value, 4) for value in values],
            "median": round(statistics.median(values), 4),
            "spread": round(max(values) - min(values), 4),
        }


def chosen(cases: Sequence[Case], names: Sequence[str]) -> list[Case]:
    """The cases whose name fits one of ``names``, which may hold ``*``; without names all but those that want one.

    Raises:
        ValueError: A name fits no case.
    """
    for name in names:
        if not any(fnmatchcase(case.name, name) for case in cases):
            raise ValueError(f"no case is called {name}; there are {', '.join(case.name for case in cases)}")
    if not names:
        return [case for case in cases if not case.named]
    return [case for case in cases if any(fnmatchcase(case.name, name) for name in names)]


def measure(cases: Sequence[Case], place: Place) -> Iterator[Result]:
    """Measure the cases, each as often as it says; once in the quick form."""
    for number, case in enumerate(cases):
        result = Result(case, load=os.getloadavg()[0])
        try:
            for _ in range(1 if place.quick else case.trials):
                result.trials.append(dict(case.measure(place)))
        except Exception as error:  # noqa: BLE001 the other cases are worth their time
            result.failed = f"{type(error).__name__}: {error}"
        following = cases[number + 1].shares if number + 1 < len(cases) else ""
        if not case.shares or following != case.shares:
            place.release()
        yield result


def as_json(results: Sequence[Result], *, quick: bool) -> dict[str, Any]:
    """All that is needed to read the figures later, and to draw them."""
    return {
        "taken": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": _cores(),
        "quick": quick,
        "busy": busy(results),
        "cases": [result.as_json() for result in results],
    }


def busy(results: Sequence[Result]) -> bool:
    """Whether other work was under way, so that the figures are no measurement.

    Only the first case tells: the later ones follow our own work.
    """
    return bool(results) and results[0].load > _IDLE_LOAD * _cores()


def table(results: Sequence[Result]) -> str:
    """The results for people: a line for each figure, with its median and the range of its trials."""
    rows = [("case", "figure", "median", "range", "aim", "reached")]
    for result in results:
        if result.failed:
            rows.append((result.case.name, "failed", "", "", "", "no"))
            continue
        for place, figure in enumerate(result.case.figures):
            values = result.values(figure)
            reached = figure.reached(values)
            rows.append(
                (
                    result.case.name if place == 0 else "",
                    figure.name,
                    f"{_short(statistics.median(values))} {figure.unit}".strip(),
                    f"{_short(min(values))} to {_short(max(values))}",
                    figure.aim,
                    "" if reached is None else ("yes" if reached else "no"),
                )
            )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(text.ljust(wide) for text, wide in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines) + "\n"


def _short(value: float) -> str:
    return f"{value:.0f}" if value == int(value) or abs(value) >= 1000 else f"{value:.3g}"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
