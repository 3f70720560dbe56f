"""The figures of ``make bench`` as a picture: ``python -m pm_dagster_tests.bench.plot FIGURES.json PICTURE.svg``.

A case is one bar: its first figure that has an aim, divided by the aim (the other way round where more is better), so
that a bar which ends left of the line reaches it. The line on a bar goes from its best trial to its worst.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

_WIDE, _ROW, _LEFT, _BARS, _TOP = 960, 30, 130, 420, 64
#: The right edge of the bars, as a multiple of the aim; what is beyond is cut there, and its number says so.
_MOST = 3.0
_REACHED, _MISSED, _INK, _FAINT = "#2f7d5b", "#c2622d", "#1f2328", "#d0d7de"


def svg(found: Mapping[str, Any]) -> str:
    """The picture of what ``frame.as_json`` gave; cases without an aim are left out."""
    drawn = [(case, _headline(case)) for case in found["cases"]]
    rows = [(case, figure) for case, figure in drawn if figure is not None]
    high = _TOP + _ROW * len(rows) + 34
    line = _x(1.0)
    note = "small form: no measurement" if found["quick"] else ("the machine was busy" if found["busy"] else "")
    head = f"{found['taken'][:10]}, Python {found['python']}, {found['cores']} cores" + (f"; {note}" if note else "")
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDE} {high}" role="img"'
            ' font-family="sans-serif" font-size="13">'
        ),
        "<title>How near each case comes to its aim</title>",
        f'<rect width="{_WIDE}" height="{high}" fill="#ffffff"/>',
        _text(12, 22, "Measured, divided by the aim: left of the line is reached", weight="bold"),
        _text(12, 42, head),
    ]
    for place, (case, figure) in enumerate(rows):
        parts += _bar(_TOP + _ROW * place, case, figure)
    parts += [
        f'<line x1="{line:g}" x2="{line:g}" y1="{_TOP - 8}" y2="{high - 28}" stroke="{_INK}" stroke-width="1.5"/>',
        _text(line, high - 12, "the aim", anchor="middle"),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _headline(case: Mapping[str, Any]) -> Mapping[str, Any] | None:
    return next((each for each in case["figures"] if _relative(each, each["median"]) is not None), None)


def _relative(figure: Mapping[str, Any], value: float) -> float | None:
    """The value as a multiple of the aim, more being worse; None without an aim that can be divided by."""
    if figure["most"]:
        return float(value / figure["most"])
    return float(figure["least"] / value) if figure["least"] and value else None


def _bar(top: float, case: Mapping[str, Any], figure: Mapping[str, Any]) -> list[str]:
    values = [found for each in figure["values"] if (found := _relative(figure, each)) is not None]
    middle = _relative(figure, figure["median"]) or 0.0
    colour = _REACHED if figure["reached"] else _MISSED
    sign, aim = ("at most", figure["most"]) if figure["most"] is not None else ("at least", figure["least"])
    told = f"{figure['name']}: {figure['median']:.3g} {figure['unit']}".strip()
    half = top + 9
    return [
        _text(_LEFT - 10, top + 14, case["name"], anchor="end"),
        f'<rect x="{_LEFT}" y="{top}" width="{_x(middle) - _LEFT:.1f}" height="18" fill="{colour}"/>',
        f'<line x1="{_x(min(values)):.1f}" x2="{_x(max(values)):.1f}" y1="{half}" y2="{half}" stroke="{_INK}"/>',
        _text(_LEFT + _BARS + 14, top + 14, f"{told} ({sign} {aim:g})"),
        f'<line x1="{_LEFT}" x2="{_LEFT + _BARS}" y1="{top + 24}" y2="{top + 24}" stroke="{_FAINT}"/>',
    ]


def _x(multiple: float) -> float:
    return _LEFT + _BARS * min(multiple, _MOST) / _MOST


def _text(x: float, y: float, text: str, *, anchor: str = "start", weight: str = "normal") -> str:
    return (
        f'<text x="{x:g}" y="{y:g}" fill="{_INK}" text-anchor="{anchor}" font-weight="{weight}">{escape(text)}</text>'
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw."""
    parser = argparse.ArgumentParser(prog="pm_dagster_tests.bench.plot", description="Draw the figures of make bench.")
    parser.add_argument("figures", type=Path, help="what --json of pm_dagster_tests.bench wrote")
    parser.add_argument("picture", type=Path, help="the SVG to write")
    given = parser.parse_args(arguments)
    given.picture.write_text(svg(json.loads(given.figures.read_text())))


if __name__ == "__main__":
    main()
