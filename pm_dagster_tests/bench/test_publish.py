"""The picture and the page of the figures tell what the runs found."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET  # what is read is our own

import pytest

from pm_dagster_tests.bench import frame, plot, publish
from pm_dagster_tests.bench.frame import Case, Figure, Result

_LIMITS = Case(
    "limits",
    "what it is",
    "below 1.1",
    (
        Figure("of the limit", most=1.1, measured="dispatch", reference="limit"),
        Figure("429", most=0),
        Figure("dispatch", "s"),
        Figure("limit", "s"),
        Figure("calls"),
    ),
    lambda _: {},
)
_COLD = Case(
    "cold",
    "what it is",
    "below 0.9 s",
    (Figure("pm", "s", most=0.9, reference="bare"), Figure("bare", "s")),
    lambda _: {},
)
_SHARE = Case("share", "what it is", "0.9", (Figure("share", least=0.9),), lambda _: {}, group="Others")


def _run(limits: Sequence[float], cold: Sequence[float], share: float = 0.95, **how: Any) -> Mapping[str, Any]:  # noqa: ANN401
    results = [
        Result(
            _LIMITS,
            [{"of the limit": each / 10, "429": 0, "dispatch": each, "limit": 10.0, "calls": 7} for each in limits],
        ),
        Result(_COLD, [{"pm": each, "bare": 0.5} for each in cold]),
        Result(_SHARE, [{"share": share}], **how),
    ]
    return frame.as_json(results, quick=False)


def _texts(picture: str) -> list[str]:
    return [each.text or "" for each in ET.fromstring(picture).iter() if each.tag.endswith("text")]  # noqa: S314 our own


def test_a_row_of_the_page_has_both_runs_reference_ratio_and_aim() -> None:
    told = publish.part([_run([10.5, 10.9], [0.8, 0.7]), _run([10.2, 11.2], [0.8, 1.0])]).splitlines()
    assert "| case | measured | run 1 | run 2 | reference | ratio | aim | reached |" in told
    assert (
        "| limits | dispatch | 10.7 (10.5 to 10.9) s | 10.7 (10.2 to 11.2) s | limit: 10; 10 s |"
        " 1.07 (1.05 to 1.09); 1.07 (1.02 to 1.12) | ratio ≤ 1.1 | yes; no |"
    ) in told
    assert "|  | 429 | 0 | 0 |  |  | ≤ 0 | yes; yes |" in told
    assert (
        "| cold | pm | 0.75 (0.7 to 0.8) s | 0.9 (0.8 to 1) s | bare: 0.5; 0.5 s | 1.5 (1.4 to 1.6); 1.8 (1.6 to 2) |"
        " ≤ 0.9 s | yes; no |"
    ) in told
    assert "| share | share | 0.95 | 0.95 |  |  | ≥ 0.9 | yes; yes |" in told
    assert "| limits | calls | 7 | 7 |" in told
    # What stands beside an aim stands there only.
    assert len([line for line in told if line.startswith("| limits |")]) == 2
    assert not any("no measurement" in line for line in told)


def test_a_case_that_failed_in_one_run_shows_why_and_its_other_figures() -> None:
    told = publish.part([_run([10.5], [0.8], failed="RuntimeError: rows wait"), _run([10.5], [0.8])])
    assert "| share | share | RuntimeError: rows wait | 0.95 |  |  | ≥ 0.9 | yes |" in told.splitlines()
    none = _run([10.5], [0.8], failed="RuntimeError: rows wait")
    assert "| share |  | RuntimeError: rows wait |  |  |  | no |" in publish.part([none]).splitlines()


def test_the_page_keeps_the_runs_and_is_written_anew_from_them(tmp_path: Path) -> None:
    runs = [_run([10.5, 10.9], [0.8, 0.7]), _run([10.2, 11.2], [0.8, 1.0])]
    for number, run in enumerate(runs):
        (tmp_path / f"{number}.json").write_text(json.dumps(run))
    page = tmp_path / "figures.md"
    page.write_text("# Figures\n\n<!-- bench -->\nold\n<!-- /bench -->\n\nAfter\n")
    publish.main([str(tmp_path / "0.json"), str(tmp_path / "1.json"), "--folder", str(tmp_path)])
    written = page.read_text()
    assert written == f"# Figures\n\n<!-- bench -->\n\n{publish.part(runs)}\n\n<!-- /bench -->\n\nAfter\n"
    assert (tmp_path / "bench.svg").read_text() == plot.svg(*runs)
    page.write_text(written.replace("limits", "?"))
    publish.main(["--folder", str(tmp_path)])
    assert page.read_text() == written
    page.write_text("# Figures\n")
    with pytest.raises(SystemExit):
        publish.main(["--folder", str(tmp_path)])


def test_the_page_in_the_docs_is_what_its_runs_give() -> None:
    runs = json.loads((publish.FOLDER / "bench.json").read_text())
    how = "run: python -m pm_dagster_tests.bench.publish"
    assert publish.part(runs) in (publish.FOLDER / "figures.md").read_text(), how
    assert (publish.FOLDER / "bench.svg").read_text() == plot.svg(*runs), how


def test_each_aim_is_a_bar_and_every_trial_a_dot() -> None:
    picture = plot.svg(_run([10.5, 10.9], [0.8, 0.7]), _run([10.2, 11.2], [0.8, 1.0]))
    texts = _texts(picture)
    for told in ("limits", "of the limit", "1.07", "≤ 1.1", "429", "0", "≤ 0", "cold", "0.8 s", "Others", "≥ 0.9"):
        assert told in texts, told
    assert "calls" not in texts
    # Two trials and two runs: limits and 429 and cold; share has one trial.
    assert picture.count("<circle") == 3 * 4 + 2
    assert picture.count('fill="#ffffff" stroke') == 3 * 2 + 1
    assert texts.count("limits") == 1


def test_a_bar_ends_left_of_the_line_when_its_aim_is_reached() -> None:
    runs = [_run([10.5], [0.8]), _run([30.0], [0.8], share=0.5)]
    ends = [plot._x(bar.relative(bar.median)) for bar in plot._bars(runs)]
    line, edge = plot._x(1.0), plot._LEFT + plot._BARS
    limits, throttled, cold, share = ends
    assert (limits > line, throttled == plot._LEFT, cold < line, share > line) == (True, True, True, True)
    assert max(ends) <= edge
    # Beyond the right edge the number says how far.
    assert "(5 x the aim)" in plot.svg(_run([55.0], [0.8]))
    reached = [bar.reached for bar in plot._bars(runs)]
    assert reached == [False, True, True, False]


def test_calls_that_were_throttled_against_an_aim_of_none_are_no_reached_aim() -> None:
    result = Result(_LIMITS, [{"of the limit": 1.0, "429": 2, "dispatch": 10.0, "limit": 10.0, "calls": 7}])
    bars = {bar.name: bar for bar in plot._bars([frame.as_json([result], quick=False)])}
    assert bars["429"].reached is False
    assert plot._x(bars["429"].relative(2)) == plot._LEFT + plot._BARS


def test_the_picture_says_when_its_figures_are_no_measurement() -> None:
    result = Result(_SHARE, [{"share": 1.0}], load=1000.0)
    assert "small forms: no measurement" in plot.svg(frame.as_json([result], quick=True))
    assert "the machine was busy: no measurement" in plot.svg(frame.as_json([result], quick=False))
    assert "**the machine was busy: no measurement**" in publish.part([frame.as_json([result], quick=False)])
    idle = Result(_SHARE, [{"share": 1.0}])
    assert "no measurement" not in plot.svg(frame.as_json([idle], quick=False))


def test_a_case_that_failed_has_no_bar() -> None:
    failed = Result(_SHARE, failed="RuntimeError: rows wait")
    texts = _texts(plot.svg(frame.as_json([failed], quick=False)))
    assert "not measured" in texts
