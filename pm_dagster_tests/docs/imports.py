"""The packages and who imports whom, as the picture and the table of docs/explanation/layout.md."""

from __future__ import annotations

import tomllib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from html import escape

import grimp

from pm_dagster_tests.docs import ROOT

PICTURE = ROOT / "docs" / "explanation" / "imports.svg"
_CONTRACT = "Who may know whom"
#: Parts of a package that are layers of their own.
_PARTS = ("config.credentials", "config.entra")
_WIDTH, _ROW, _BOX, _HIGH = 860, 66, 160, 34
#: How far from the middle a lone box stands, in turn to the left and to the right.
_SWING = 90
_HEAD = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img"
 aria-label="The packages and what each imports" font-family="Helvetica, Arial, sans-serif" font-size="14">
<style>.b{{fill:#eef3fb;stroke:#3b5b8c;stroke-width:1.5}}.a{{stroke:#333;fill:none;marker-end:url(#m)}}text{{fill:#111}}</style>
<defs><marker id="m" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto">
<path d="M0 0L10 5L0 10z" fill="#333"/></marker></defs>
<rect width="{width}" height="{height}" fill="#fff"/>"""


def package(module: str) -> str:
    """The name under which a module appears; empty for the root."""
    name = module.removeprefix("pm_dagster").lstrip(".")
    return next((part for part in _PARTS if name == part or name.startswith(f"{part}.")), name.partition(".")[0])


def imports() -> dict[str, set[str]]:
    """For each package, those that it imports."""
    graph = grimp.build_graph("pm_dagster", cache_dir=None)
    found: dict[str, set[str]] = defaultdict(set)
    for module in graph.modules:
        found[package(module)] |= {package(each) for each in graph.find_modules_directly_imported_by(module)}
    return {name: others - {name, ""} for name, others in sorted(found.items()) if name}


def layers() -> list[list[str]]:
    """The rows of the picture, from the import contract."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    (contract,) = [each for each in contracts if each["name"].startswith(_CONTRACT)]
    rows = [[package(each.strip()) for each in line.split("|")] for line in contract["layers"]]
    placed = list(dict.fromkeys(name for row in rows for name in row))
    found = [
        [name for name in placed if name in row and all(name not in above for above in rows[:n])]
        for n, row in enumerate(rows)
    ]
    return [row for row in found if row]


def needed(edges: Mapping[str, set[str]]) -> Iterator[tuple[str, str]]:
    """The imports that do not follow from a way over others."""

    def reached(start: str) -> set[str]:
        found: set[str] = set()
        left = [start]
        while left:
            for other in edges.get(left.pop(), ()):
                if other not in found:
                    found.add(other)
                    left.append(other)
        return found

    for name, others in edges.items():
        for other in sorted(others):
            if not any(other in reached(between) for between in others - {other}):
                yield name, other


def picture() -> str:
    """The SVG: a box for each package, above those that it imports."""
    rows = layers()
    places: dict[str, tuple[float, float]] = {}
    for number, row in enumerate(rows):
        for index, name in enumerate(row):
            # Rows with one box swing from side to side, so that arrows past them do not cross them.
            middle = _WIDTH / 2 + (0 if len(row) > 1 else _SWING * (-1) ** number)
            places[name] = (middle + (index - (len(row) - 1) / 2) * 1.6 * _BOX, 16 + number * _ROW)
    height = 16 + len(rows) * _ROW
    lines = [_HEAD.format(width=_WIDTH, height=height)]
    for name, other in needed({name: others & places.keys() for name, others in imports().items() if name in places}):
        (x, y), (to_x, to_y) = places[name], places[other]
        lines.append(f'<path class="a" d="M{x:.0f} {y + _HIGH:.0f}L{to_x:.0f} {to_y:.0f}"/>')
    for name, (x, y) in places.items():
        lines.append(
            f'<rect class="b" x="{x - _BOX / 2:.0f}" y="{y:.0f}" width="{_BOX}" height="{_HIGH}" rx="6"/>'
            f'<text x="{x:.0f}" y="{y + 22:.0f}" text-anchor="middle">{escape(name)}</text>'
        )
    return "\n".join([*lines, "</svg>", ""])


def table() -> list[list[str]]:
    """One row for each package: its name and what it imports."""
    return [[f"`{name}`", ", ".join(f"`{each}`" for each in sorted(others))] for name, others in imports().items()]
