"""``make bench``: every case works, in its small form; aims are judged and never fail anything."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET  # what is read is our own

import pytest

from pm_dagster_tests.bench import __main__ as bench
from pm_dagster_tests.bench import dispatching, frame
from pm_dagster_tests.bench.__main__ import CASES, main
from pm_dagster_tests.bench.frame import Case, Figure, Result
from pm_dagster_tests.bench.place import Place, Request

_CASE = Case("one", "what it is", "below 2", (Figure("ratio", most=2.0), Figure("seconds", "s")), lambda _: {})


def _measured(folder: Path, *names: str) -> Mapping[str, Any]:
    figures, picture = folder / "bench.json", folder / "bench.svg"
    main(["--quick", "--json", str(figures), "--plot", str(picture), *names])
    found: Mapping[str, Any] = json.loads(figures.read_text())
    wanted = frame.chosen(CASES, names)
    assert [case["name"] for case in found["cases"]] == [case.name for case in wanted]
    for case, told in zip(wanted, found["cases"], strict=True):
        assert told["failed"] == ""
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
    assert frame.chosen(CASES, []) == [case for case in CASES if not case.named]
    with pytest.raises(ValueError, match="no case is called paced; there are mixed-16"):
        frame.chosen(CASES, ["paced"])


def test_every_case_is_measured_twice_at_least() -> None:
    assert all(case.trials >= 2 for case in CASES if not case.named)


def test_what_takes_longest_is_measured_only_by_name() -> None:
    assert [case.name for case in frame.chosen(CASES, ["backlog*"])] == ["backlog", "backlog-whole"]
    assert "backlog-whole" not in [case.name for case in frame.chosen(CASES, [])]


def test_every_ratio_names_figures_of_its_case() -> None:
    for case in CASES:
        there = {figure.name for figure in case.figures}
        assert {name for figure in case.figures for name in (figure.measured, figure.reference) if name} <= there


def test_cases_that_share_stand_beside_each_other_and_leave_nothing_running() -> None:
    said: list[str] = []

    @contextmanager
    def start() -> Iterator[str]:
        said.append("started")
        yield "it"
        said.append("ended")

    def measure(place: Place) -> Mapping[str, float]:
        said.append(place.held("it", start))
        return {"ratio": 1.0, "seconds": 1.0}

    def alone(_: Place) -> Mapping[str, float]:
        said.append("other")
        return {"ratio": 1.0, "seconds": 1.0}

    one = replace(_CASE, measure=measure, shares="it")
    other = replace(_CASE, measure=alone)
    assert len(list(frame.measure([one, one, other, one], Place(quick=False)))) == 4
    shared = ["started", "it", "it", "it", "it", "ended"]
    assert said == [*shared, "other", "other", "started", "it", "it", "ended"]


def test_a_case_that_fails_is_told_and_the_others_are_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: Place) -> Mapping[str, float]:
        raise RuntimeError("rows still wait")

    good = replace(_CASE, name="good", measure=lambda _: {"ratio": 1.0, "seconds": 1.0})
    monkeypatch.setattr(bench, "CASES", (replace(_CASE, measure=fail), good))
    figures, picture = tmp_path / "bench.json", tmp_path / "bench.svg"
    with pytest.raises(SystemExit) as ended:
        bench.main(["--json", str(figures), "--plot", str(picture)])
    assert ended.value.code == 1
    assert "one failed: RuntimeError: rows still wait" in capsys.readouterr().out
    one, two = json.loads(figures.read_text())["cases"]
    assert (one["reached"], one["failed"], one["figures"]) == (False, "RuntimeError: rows still wait", [])
    assert (two["reached"], two["failed"], len(two["figures"])) == (True, "", 2)


def _call(began: float, status: int = 200) -> Request:
    return Request("run-now", began, 0.1, status, "")


def test_following_and_recovering_are_read_from_the_workspaces_log() -> None:
    taken = [_call(at / 20, 429 if at % 2 else 200) for at in range(80)]
    followed = [_call(4 + at / 10) for at in range(60)]
    given_back = [_call(10 + at / 20) for at in range(80)]
    calls = [*given_back, *taken, *followed]
    # A tenth of the calls of three seconds: two of the old ones may be among those that follow.
    assert dispatching._follows(calls, 0.0) == pytest.approx(3.75, abs=0.2)
    assert dispatching._recovers(calls, 9.0, 20.0) == pytest.approx(0.8, abs=0.25)
    assert dispatching._recovers(calls, 9.0, 40.0) == pytest.approx(calls[79].began - 9.0)
    assert dispatching._follows([], 0.0) == 0


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


def test_a_first_load_above_half_of_the_cores_is_a_busy_machine() -> None:
    busy = Result(_CASE, [{"ratio": 1.0, "seconds": 9.0}], load=1000.0)
    idle = Result(_CASE, [{"ratio": 1.0, "seconds": 9.0}])
    assert frame.busy([busy, idle])
    assert not frame.busy([idle, busy])
    assert not frame.busy([])


def test_processes_find_bytecode_and_a_dispatch_may_take_what_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setenv("PM_SCHEMA", "somebody_elses")
    with Place(quick=True) as place, place.deployment(0) as deployment:
        ran = deployment.run("-c", "import os, sys; print(sys.dont_write_bytecode, 'PM_SCHEMA' in os.environ)")
        assert ran.out.split() == ["False", "False"]
        assert deployment.variables["PM_DISPATCH_LIMIT"] == "1000"
