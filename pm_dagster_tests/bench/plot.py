"""The figures of ``make bench`` as a picture: ``python -m pm_dagster_tests.bench.plot PICTURE.svg FIGURES.json...``.

Each aim is one bar: the median of the figure divided by the aim (the other way round where more is better), so that a
bar which ends left of the line reaches it. A dot is a trial: full in the first run, hollow in the second.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Any

_WIDE, _ROW, _HEADING, _TOP = 980, 24, 38, 84
#: Where the columns begin: case, figure, bars, values.
_CASE, _FIGURE, _LEFT, _BARS, _VALUES = 18, 152, 372, 340, 728
#: The right edge of the bars, as a multiple of the aim; what is beyond is cut there, and its number says so.
_MOST = 2.0
_TICKS = (0.5, 1.0, 1.5)
_REACHED, _MISSED, _INK, _SOFT, _FAINT, _TRACK = "#2f7d5b", "#c2622d", "#1f2328", "#59636e", "#d0d7de", "#f0f3f6"


@dataclass(frozen=True)
class Bar:
    """One aim of one case, in all runs.

    Attributes:
        group: The heading of its case.
        case: The name of its case.
        name: The figure's name; "failed" where a run could not measure the case.
        unit: Of the values.
        aim: As text.
        limit: The aim's value; None where the case failed.
        least: Whether more is better.
        runs: The values of each run's trials.
        reached: Whether every trial of every run reaches the aim.
    """

    group: str
    case: str
    name: str
    unit: str
    aim: str
    limit: float | None
    least: bool
    runs: tuple[tuple[float, ...], ...]
    reached: bool

    @property
    def median(self) -> float:
        """Of the trials of all runs; 0 without any."""
        return statistics.median([value for run in self.runs for value in run] or [0.0])

    def relative(self, value: float) -> float:
        """The value as a multiple of the aim, more being worse."""
        if self.least:
            return math.inf if value <= 0 else float(self.limit or 0) / value
        if self.limit:
            return value / self.limit
        return 0.0 if value <= 0 else math.inf


def svg(*runs: Mapping[str, Any]) -> str:
    """The picture of what ``frame.as_json`` gave for these runs."""
    bars = list(_bars(runs))
    groups = [(name, list(found)) for name, found in groupby(bars, lambda bar: bar.group)]
    high = _TOP + _HEADING * len(groups) + _ROW * len(bars) + 40
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDE} {high}" role="img"'
            ' font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif" font-size="12.5">'
        ),
        "<title>How near each figure comes to its aim</title>",
        f'<rect width="{_WIDE}" height="{high}" rx="8" fill="#ffffff"/>',
        _text(_CASE, 30, "Measured, divided by the aim: what ends left of the line reaches it", size=16, weight=600),
        _text(_CASE, 52, _about(runs), fill=_SOFT),
    ]
    top = float(_TOP)
    for tick in _TICKS:
        parts.append(_line(_x(tick), top, _x(tick), high - 34, _FAINT, 1))
        parts.append(_text(_x(tick), high - 16, f"{tick:g} x" if tick != 1 else "the aim", anchor="middle", fill=_SOFT))
    for name, found in groups:
        parts.append(_text(_CASE, top + 24, name, size=13.5, weight=600))
        top += _HEADING
        before = ""
        for bar in found:
            parts += _drawn(top, bar, names_case=bar.case != before)
            before = bar.case
            top += _ROW
    parts += [_line(_x(1.0), _TOP, _x(1.0), high - 34, _INK, 1.6), "</svg>"]
    return "\n".join(parts) + "\n"


def notes(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """What makes the figures no measurement; nothing when they are one."""
    return [
        *(["small forms: no measurement"] if any(run["quick"] for run in runs) else []),
        *(["the machine was busy: no measurement"] if any(run["busy"] for run in runs) else []),
    ]


def _about(runs: Sequence[Mapping[str, Any]]) -> str:
    first = runs[0]
    days = sorted({run["taken"][:10] for run in runs})
    count = "one run" if len(runs) == 1 else f"{len(runs)} runs: the trials of the first are full dots"
    head = f"{' and '.join(days)}, Python {first['python']}, {first['cores']} cores, {count}"
    return "; ".join([head, *notes(runs)])


def _bars(runs: Sequence[Mapping[str, Any]]) -> Iterator[Bar]:
    cases: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        for case in run["cases"]:
            cases.setdefault(case["name"], []).append(case)
    for name, found in sorted(cases.items(), key=lambda each: _place(each[1][0], runs)):
        group = found[0]["group"]
        if any(case["failed"] for case in found):
            yield Bar(group, name, "failed", "", "", None, least=False, runs=(), reached=False)
            continue
        for figures in zip(*(case["figures"] for case in found), strict=True):
            one = figures[0]
            least = one["least"] is not None
            limit = one["least"] if least else one["most"]
            if limit is not None:
                aim = f"{'≥' if least else '≤'} {limit:g}"
                values = tuple(tuple(figure["values"]) for figure in figures)
                reached = all(figure["reached"] for figure in figures)
                yield Bar(group, name, one["name"], one["unit"], aim, limit, least=least, runs=values, reached=reached)


def _place(case: Mapping[str, Any], runs: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """Groups in the order in which they first come, and their cases in theirs."""
    order = [(each["group"], each["name"]) for run in runs for each in run["cases"]]
    groups = [group for group, _ in order]
    return groups.index(case["group"]), order.index((case["group"], case["name"]))


def _drawn(top: float, bar: Bar, *, names_case: bool) -> list[str]:
    middle = top + _ROW / 2
    colour = _REACHED if bar.reached else _MISSED
    parts = [_text(_CASE, middle + 4, bar.case, weight=500)] if names_case else []
    parts += [
        _text(_FIGURE, middle + 4, bar.name, fill=_SOFT),
        f'<rect x="{_LEFT}" y="{middle - 5:g}" width="{_BARS}" height="10" rx="2" fill="{_TRACK}"/>',
    ]
    if bar.limit is None:
        return [*parts, _text(_VALUES, middle + 4, "not measured", fill=colour, weight=600)]
    multiple = bar.relative(bar.median)
    wide = _x(multiple) - _LEFT
    if wide > 0:
        parts.append(f'<rect x="{_LEFT}" y="{middle - 5:g}" width="{wide:.1f}" height="10" rx="2" fill="{colour}"/>')
    for number, values in enumerate(bar.runs):
        fill = _INK if number == 0 else "#ffffff"
        parts += [
            f'<circle cx="{_x(bar.relative(value)):.1f}" cy="{middle:g}" r="3" fill="{fill}" stroke="{_INK}"/>'
            for value in values
        ]
    beyond = f"  ({multiple:.3g} x the aim)" if _MOST < multiple < math.inf else ""
    value = f"{number_of(bar.median)} {bar.unit}".strip()
    parts += [
        _text(_VALUES, middle + 4, value, fill=colour, weight=600),
        _text(_VALUES + 78, middle + 4, f"{bar.aim}{beyond}", fill=_SOFT),
    ]
    return parts


def number_of(value: float) -> str:
    """A value with three digits."""
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 100 else f"{value:.3g}"


def _x(multiple: float) -> float:
    return _LEFT + _BARS * min(multiple, _MOST) / _MOST


def _line(x: float, y: float, to_x: float, to_y: float, colour: str, wide: float) -> str:
    return f'<line x1="{x:g}" y1="{y:g}" x2="{to_x:g}" y2="{to_y:g}" stroke="{colour}" stroke-width="{wide:g}"/>'


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", size: float = 12.5, weight: int = 400, fill: str = _INK
) -> str:
    return (
        f'<text x="{x:g}" y="{y:g}" fill="{fill}" text-anchor="{anchor}" font-size="{size:g}"'
        f' font-weight="{weight}">{escape(text)}</text>'
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw."""
    parser = argparse.ArgumentParser(prog="pm_dagster_tests.bench.plot", description="Draw the figures of make bench.")
    parser.add_argument("picture", type=Path, help="the SVG to write")
    parser.add_argument("figures", type=Path, nargs="+", help="what --json of pm_dagster_tests.bench wrote, run by run")
    given = parser.parse_args(arguments)
    given.picture.write_text(svg(*(json.loads(each.read_text()) for each in given.figures)))


if __name__ == "__main__":
    main()
