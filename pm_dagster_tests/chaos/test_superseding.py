"""A row that was corrected after its call: killed at each statement by which it is taken anew, nothing runs twice.

A first dispatch dies with its call in doubt, the owner corrects the row, a second one resolves the former call and dies
at some message of that, and a third one finds what it left. What was asked for first may have run, once; what is asked
for now runs exactly once; and the ledger has every run.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from pm_dagster_tests.chaos.boundaries import Boundary, moment
from pm_dagster_tests.chaos.deployment import JOB, ChaosDeployment, Moment

_ANEW = "INSERT INTO process_manager.entry ("
_INTENT = {"run-now": '"run-now with token', "runs/repair": '"repair of run'}
_CLOSING = "SET state = CASE state WHEN 'ACCEPTED' THEN 'SCHEDULED'"
#: The messages by which a former call is resolved and its row is taken anew; {call} is the call that this makes.
_WHILE_RESOLVING: dict[str, Callable[[str], Moment]] = {
    "before what became of it is recorded": lambda _call: Moment('"superseded": true', "statement", "before"),
    "before that commits": lambda _call: Moment('"superseded": true', "commit", "before"),
    "after that": lambda _call: Moment('"superseded": true', "commit", "after"),
    "before the row is taken anew": lambda _call: Moment(_ANEW, "commit", "before"),
    "after the row is taken anew": lambda _call: Moment(_ANEW, "commit", "after"),
    "before the new intent": lambda call: Moment(_INTENT[call], "commit", "before"),
    "after the new intent": lambda call: Moment(_INTENT[call], "commit", "after"),
    "after the new reply": lambda call: Moment(f'"kind": "answer", "call": "{call}"', "statement", "before"),
    "before closing": lambda _call: Moment(_CLOSING, "commit", "before"),
    "after closing": lambda _call: Moment(_CLOSING, "commit", "after"),
}
#: The same where the answer is known, and only the closing is not done.
_WHILE_CLOSING = {
    "before it is superseded": Moment("superseded = true, open = false", "statement", "before"),
    "before that commits": Moment("superseded = true, open = false", "commit", "before"),
    "after that": Moment("superseded = true, open = false", "commit", "after"),
    "before the row is taken anew": Moment(_ANEW, "commit", "before"),
    "after the row is taken anew": Moment(_ANEW, "commit", "after"),
}


#: The moments that `make test` tries; the long form has all.
_SHORT = ("before that commits", "after the row is taken anew", "after the new reply")


_RESOLVING = [pytest.param(at, marks=[] if at in _SHORT else pytest.mark.chaos) for at in _WHILE_RESOLVING]
_CLOSING_MOMENTS = [pytest.param(at, marks=[] if at in _SHORT else pytest.mark.chaos) for at in _WHILE_CLOSING]


@dataclass(frozen=True)
class _Asked:
    """How often what the row said first, and what it says now, was started."""

    first: int
    now: int


def _killed(deployment: ChaosDeployment, mark: Moment | None) -> None:
    assert mark is not None
    doom = deployment.kill_at(mark)
    assert deployment.dispatch().wait() == -signal.SIGKILL
    assert doom.met == 1
    deployment.forget_the_dead()


def _by_file(deployment: ChaosDeployment) -> _Asked:
    files = [run.parameters["FILE_NAME"] for run in deployment.workspace.state.runs()]
    return _Asked(files.count("file.csv"), files.count("right.csv"))


def _is_whole(deployment: ChaosDeployment, row: int) -> None:
    """Everything is at rest, every run is in the ledger, and nothing was broken but that two things had been asked."""
    assert deployment.statuses()[row] == "SCHEDULED"
    verdict = deployment.verdict(may_fail=())
    assert verdict.clean, str(verdict)
    known = {run for (run,) in deployment.sql("SELECT accepted_run_id FROM process_manager.entry") if run is not None}
    assert {run.run_id for run in deployment.workspace.state.runs()} <= known
    assert deployment.sql("SELECT count(*) FROM process_manager.entry WHERE open") == [(0,)]


def _to_rest(deployment: ChaosDeployment) -> None:
    for _ in range(2):
        assert deployment.dispatch().wait() == 0
        deployment.later()


@pytest.mark.parametrize("at", _RESOLVING)
@pytest.mark.parametrize("first", [Boundary.AFTER_INTENT, Boundary.AFTER_REPLY])
def test_a_corrected_file(chaos: ChaosDeployment, first: Boundary, at: str) -> None:
    (row,) = chaos.add()
    _killed(chaos, moment(first, "run-now"))
    chaos.sql("UPDATE mm_run_plc SET file_name = 'right.csv'")
    _killed(chaos, _WHILE_RESOLVING[at]("run-now"))
    _to_rest(chaos)
    asked = _by_file(chaos)
    assert asked == _Asked(int(first is Boundary.AFTER_REPLY), 1)
    ((run_id,),) = chaos.sql("SELECT wkf_job_run_id FROM mm_run_plc")
    assert chaos.workspace.state.run(run_id).parameters["FILE_NAME"] == "right.csv"
    _is_whole(chaos, row)


@pytest.mark.parametrize("at", _CLOSING_MOMENTS)
def test_a_file_corrected_after_the_answer(chaos: ChaosDeployment, at: str) -> None:
    (row,) = chaos.add()
    _killed(chaos, moment(Boundary.BEFORE_CLOSING, "run-now"))
    chaos.sql("UPDATE mm_run_plc SET file_name = 'right.csv'")
    _killed(chaos, _WHILE_CLOSING[at])
    _to_rest(chaos)
    asked = _by_file(chaos)
    assert asked == _Asked(1, 1)
    _is_whole(chaos, row)


@pytest.mark.parametrize("at", _RESOLVING)
def test_a_corrected_earlier_run(chaos: ChaosDeployment, at: str) -> None:
    row, wrong = chaos.add_repair()
    right = chaos.workspace.state.add_run(JOB).run_id
    _killed(chaos, moment(Boundary.AFTER_REPLY, "runs/repair"))
    chaos.sql("UPDATE mm_run_plc SET wkf_job_run_id = %s", (right,))
    _killed(chaos, _WHILE_RESOLVING[at]("runs/repair"))
    _to_rest(chaos)
    attempts = {run.run_id: len(run.attempts) for run in chaos.workspace.state.runs()}
    assert attempts == {wrong: 2, right: 2}
    assert chaos.sql("SELECT wkf_job_run_id FROM mm_run_plc") == [(right,)]
    _is_whole(chaos, row)
