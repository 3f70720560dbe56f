"""``make bench``: every case works, in its small form; aims are judged and never fail anything."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET  # what is read is our own

import pytest

from pm_dagster_tests.bench import frame, plot
from pm_dagster_tests.bench.__main__ import CASES, main
from pm_dagster_tests.bench.frame import Case, Figure, Result

_CASE = Case("one", "what it is", "below 2", (Figure("ratio", most=2.0), Figure("seconds", "s")), lambda _: {})


def _measured(folder: Path, *names: str) -> Mapping[str, Any]:
    figures, picture = folder / "bench.json", folder / "bench.svg"
    main(["--quick", "--json", str(figures), "--plot", str(picture), *names])
    found: Mapping[str, Any] = json.loads(figures.read_text())
    wanted = [case for case in CASES if not names or case.name in names]
    assert [case["name"] for case in found["cases"]] == [case.name for case in wanted]
    for case, told in zip(wanted, found["cases"], strict=True):
        assert [each["name"] for each in told["figures"]] == [figure.name for figure in case.figures]
        assert any(each["values"][0] > 0 for each in told["figures"]), case.name
        assert told["reached"] in (True, False), f"{case.name} has no aim"
    drawn = {each.text for each in ET.parse(picture).iter() if each.tag.endswith("text")}  # noqa: S314 our own
    assert {case.name for case in wanted} <= drawn
    return found


def test_cases_are_chosen_by_name_and_written_down(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = _measured(tmp_path, "mixed-16", "limits")
    assert found["quick"] is True
    shown = capsys.readouterr().out
    assert "share of the ideal" in shown
    assert "no measurement" in shown


@pytest.mark.slow
def test_every_case_works_in_its_small_form(tmp_path: Path) -> None:
    _measured(tmp_path)


def test_the_cases_are_listed_with_their_aims(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--list"])
    shown = capsys.readouterr().out
    assert all(f"{case.name}\n" in shown and case.aim in shown for case in CASES)
    assert len({case.name for case in CASES}) == len(CASES)


def test_a_name_may_hold_a_star_and_must_fit() -> None:
    assert [case.name for case in frame.chosen(CASES, ["mixed-*"])] == ["mixed-16", "mixed-32"]
    assert frame.chosen(CASES, []) == list(CASES)
    with pytest.raises(ValueError, match="no case is called paced; there are mixed-16"):
        frame.chosen(CASES, ["paced"])


def test_every_case_is_measured_twice_at_least() -> None:
    assert all(case.trials >= 2 for case in CASES)


@pytest.mark.parametrize(
    ("values", "reached"), [([1.5, 2.0], True), ([1.5, 2.1], False)], ids=["each trial", "all but one"]
)
def test_an_aim_is_reached_when_each_trial_reaches_it(values: list[float], reached: bool) -> None:  # noqa: FBT001
    result = Result(_CASE, [{"ratio": value, "seconds": 9.0} for value in values])
    assert result.reached is reached
    (ratio, seconds) = result.as_json()["figures"]
    assert (ratio["reached"], seconds["reached"]) == (reached, None)
    assert ratio["spread"] == pytest.approx(values[1] - values[0])
    assert ("yes" if reached else "no") in frame.table([result])
    assert Figure("share", least=0.9).reached([0.95, 0.9]) is True
    assert Figure("share", least=0.9).reached([0.95, 0.89]) is False


def test_the_picture_says_when_its_figures_are_no_measurement() -> None:
    result = Result(_CASE, [{"ratio": 1.0, "seconds": 9.0}], load=1000.0)
    assert "small form: no measurement" in plot.svg(frame.as_json([result], quick=True))
    assert "the machine was busy" in plot.svg(frame.as_json([result], quick=False))
    idle = Result(_CASE, [{"ratio": 1.0, "seconds": 9.0}])
    assert "busy" not in plot.svg(frame.as_json([idle], quick=False))
