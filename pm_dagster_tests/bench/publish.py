"""Puts runs of ``make bench`` on the page of figures: ``python -m pm_dagster_tests.bench.publish RUN.json RUN.json``.

It keeps the runs in ``docs/explanation/bench.json``, draws ``bench.svg`` beside it, and writes the tables of
``figures.md`` between ``<!-- bench -->`` and ``<!-- /bench -->``. Without arguments it writes picture and tables anew
from the runs that it kept.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pm_dagster_tests.bench import plot

FOLDER = Path(__file__).parents[2] / "docs" / "explanation"
_PART = re.compile(r"(?s)(?<=<!-- bench -->\n).*?(?=<!-- /bench -->)")


def main(arguments: Sequence[str] | None = None) -> None:
    """Publish."""
    parser = argparse.ArgumentParser(prog="pm_dagster_tests.bench.publish", description="Publish runs of make bench.")
    parser.add_argument("runs", type=Path, nargs="*", help="what --json of pm_dagster_tests.bench wrote, run by run")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="of figures.md (default: that of the docs)")
    given = parser.parse_args(arguments)
    kept, page = given.folder / "bench.json", given.folder / "figures.md"
    text = page.read_text()
    if not _PART.search(text):
        parser.error(f"{page} has no place between <!-- bench --> and <!-- /bench -->")
    if given.runs:
        kept.write_text(json.dumps([json.loads(each.read_text()) for each in given.runs], indent=1) + "\n")
    runs = json.loads(kept.read_text())
    (given.folder / "bench.svg").write_text(plot.svg(*runs))
    page.write_text(_PART.sub(lambda _: f"\n{part(runs)}\n\n", text))


def part(runs: Sequence[Mapping[str, Any]]) -> str:
    """The part of the page that these runs give."""
    taken = [
        f"{run['taken'][:16].replace('T', ' ')} UTC, Python {run['python']}, {run['machine']}, {run['cores']} cores"
        + "".join(f"; **{note}**" for note in plot.notes([run]))
        for run in runs
    ]
    lines = [f"* Run {number}: {told}." for number, told in enumerate(taken, 1)]
    numbers = [f"run {number}" for number in range(1, len(runs) + 1)]
    aims = ["case", "measured", *numbers, "reference", "ratio", "aim", "reached"]
    others = ["case", "figure without an aim", *numbers]
    return "\n".join(
        [
            *lines,
            "",
            "Median and range of the trials. Two values parted by a semicolon are those of the runs.",
            "",
            *_table(aims, [row for case in _cases(runs) for row in _aims(case)]),
            "",
            *_table(others, [row for case in _cases(runs) for row in _others(case)]),
        ]
    )


Figure = Mapping[str, Any]


def _cases(runs: Sequence[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    """Each case as the runs found it; one that a run did not measure counts as failed there."""
    for name in dict.fromkeys(case["name"] for run in runs for case in run["cases"]):
        missing = {"name": name, "failed": "not measured", "figures": []}
        yield [next((case for case in run["cases"] if case["name"] == name), missing) for run in runs]


def _figures(case: Sequence[Mapping[str, Any]]) -> list[Figure]:
    return list(next((each["figures"] for each in case if each["figures"]), []))


def _aims(case: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    """A row for each aim of a case."""
    figures = _figures(case)
    if not figures:
        yield [case[0]["name"], "", *(each["failed"] for each in case), "", "", "", "no"]
    name = case[0]["name"]
    for figure in figures:
        if figure["most"] is None and figure["least"] is None:
            continue
        shown, beside = figure["measured"] or figure["name"], figure["reference"]
        found = [_by_name(each) for each in case if each["figures"]]
        ratios = [_ratio(by_name[figure["name"]], by_name) for by_name in found] if beside else []
        reference = "; ".join(plot.number_of(by_name[beside]["median"]) for by_name in found) if beside else ""
        yield [
            name,
            shown,
            *(_cell(each, shown) for each in case),
            f"{beside}: {reference} {found[0][beside]['unit']}".strip() if beside else "",
            "; ".join(ratios),
            _aim(figure),
            "; ".join("yes" if by_name[figure["name"]]["reached"] else "no" for by_name in found),
        ]
        name = ""


def _others(case: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    """A row for each figure that stands in no row of an aim."""
    figures = _figures(case)
    aims = [each for each in figures if each["most"] is not None or each["least"] is not None]
    told = {name for each in aims for name in (each["name"], each["measured"], each["reference"])}
    name = case[0]["name"]
    for figure in figures:
        if figure["name"] not in told:
            yield [name, figure["name"], *(_cell(each, figure["name"]) for each in case)]
            name = ""


def _by_name(case: Mapping[str, Any]) -> dict[str, Figure]:
    return {figure["name"]: figure for figure in case["figures"]}


def _cell(case: Mapping[str, Any], name: str) -> str:
    if not case["figures"]:
        return str(case["failed"])
    figure = _by_name(case)[name]
    return f"{_spread(figure['values'])} {figure['unit']}".strip()


def _ratio(figure: Figure, by_name: Mapping[str, Figure]) -> str:
    if figure["measured"]:
        return _spread(figure["values"])
    pairs = zip(figure["values"], by_name[figure["reference"]]["values"], strict=True)
    return _spread([value / reference for value, reference in pairs])


def _spread(values: Sequence[float]) -> str:
    low, high, middle = (plot.number_of(each) for each in (min(values), max(values), statistics.median(values)))
    return middle if low == high else f"{middle} ({low} to {high})"


def _aim(figure: Figure) -> str:
    sign, limit = ("≤", figure["most"]) if figure["most"] is not None else ("≥", figure["least"])
    of = "ratio " if figure["measured"] else ""
    return f"{of}{sign} {limit:g} {figure['unit']}".strip()


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [titles, ["---"] * len(titles), *rows]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


if __name__ == "__main__":
    main()
