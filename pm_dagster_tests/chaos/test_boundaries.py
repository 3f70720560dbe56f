"""The instruments prove themselves: at each boundary the database and the workspace are as its name promises."""

from __future__ import annotations

import signal
import threading
import time
from contextlib import closing
from dataclasses import dataclass

import psycopg2
import pytest

from pm_dagster_tests.chaos.boundaries import AHEAD_SETTINGS, Boundary, moment
from pm_dagster_tests.chaos.deployment import ChaosDeployment, Moment
from pm_dagster_tests.chaos.wire import Rule, Then, When


@dataclass(frozen=True)
class Left:
    """What a killed dispatch leaves of one row: the entry's state, the row's status, requests, recorded answers."""

    states: tuple[str, ...]
    status: str
    requests: int
    answers: int


_LEFT = {
    Boundary.BEFORE_CLAIM: Left((), "WAITING", 0, 0),
    Boundary.AFTER_CLAIM: Left(("CLAIMED",), "WAITING", 0, 0),
    Boundary.AFTER_INTENT: Left(("SENDING",), "WAITING", 0, 0),
    Boundary.AFTER_REPLY: Left(("SENDING",), "WAITING", 1, 0),
    Boundary.BEFORE_CLOSING: Left(("ACCEPTED",), "WAITING", 1, 1),
    Boundary.AFTER_CLOSING: Left(("SCHEDULED",), "SCHEDULED", 1, 1),
}


def _left(deployment: ChaosDeployment, row: int, call: str) -> Left:
    ((answers,),) = deployment.sql(
        "SELECT count(*) FROM process_manager.event WHERE kind = 'answer' AND call = %s", (call,)
    )
    return Left(tuple(deployment.states()), deployment.statuses()[row], deployment.workspace.log.count(call), answers)


def _kill(deployment: ChaosDeployment, boundary: Boundary, call: str) -> None:
    mark = moment(boundary, call)
    assert mark is not None
    doom = deployment.kill_at(mark)
    assert deployment.dispatch().wait() == -signal.SIGKILL
    assert doom.met == 1
    deployment.forget_the_dead()


@pytest.mark.parametrize("call", ["run-now", "runs/repair"])
def test_calls_that_were_submitted_ahead_have_not_left(chaos: ChaosDeployment, call: str) -> None:
    """One answer is recorded; of the others some are under way, and some are announced and were never made."""
    for _ in range(6):
        chaos.add() if call == "run-now" else chaos.add_repair()
    chaos.workspace.faults.add(call, "hang", "before", skip=1, count=None, seconds=1.0)
    mark = moment(Boundary.SUBMITTED_AHEAD, call)
    assert mark is not None
    doom = chaos.kill_at(mark)
    assert chaos.dispatch(**AHEAD_SETTINGS).wait() == -signal.SIGKILL
    assert doom.met == 1
    chaos.forget_the_dead()
    states = chaos.states()
    sent = chaos.workspace.log.count(call)
    assert states.count("ACCEPTED") >= 1
    # Two are in flight at most; the one ahead has an intent like they have.
    assert states.count("SENDING") > sent - states.count("ACCEPTED")
    assert set(states) <= {"ACCEPTED", "SENDING", "CLAIMED"}
    assert set(chaos.statuses().values()) == {"WAITING"}


@pytest.mark.parametrize("boundary", _LEFT)
def test_what_a_new_row_is_left_as(chaos: ChaosDeployment, boundary: Boundary) -> None:
    (row,) = chaos.add()
    _kill(chaos, boundary, "run-now")
    assert _left(chaos, row, "run-now") == _LEFT[boundary]


@pytest.mark.parametrize("boundary", _LEFT)
def test_what_a_repair_is_left_as(chaos: ChaosDeployment, boundary: Boundary) -> None:
    row, _ = chaos.add_repair(repairs=1)
    _kill(chaos, boundary, "runs/repair")
    assert _left(chaos, row, "runs/repair") == _LEFT[boundary]


def test_a_look_up_whose_answer_is_not_recorded(chaos: ChaosDeployment) -> None:
    row, _ = chaos.add_repair()
    _kill(chaos, Boundary.AFTER_REPLY, "runs/get")
    assert _left(chaos, row, "runs/get") == Left(("CLAIMED",), "WAITING", 1, 0)


def test_a_verdict_sees_each_kind_of_breach(chaos: ChaosDeployment) -> None:
    """An oracle that finds nothing proves nothing: here everything is broken by hand."""
    twice, lost, failed, gone, back = chaos.add(5)
    state, log = chaos.workspace.state, chaos.workspace.log
    for _ in range(2):
        body = f'{{"job_parameters": {{"RUN_ID": "{twice}"}}, "run_id": 5, "latest_repair_id": 6}}'
        log.add(
            time=0.0, seconds=0.0, method="POST", path="", endpoint="runs/repair", body=body, token_hash="",
            connection="", status=200, effect=True, fault="",
        )  # fmt: skip
    run, _ = state.start_run(1001, {"RUN_ID": str(twice)})
    chaos.sql("UPDATE mm_run_plc SET run_sttus_name = 'FAILED' WHERE run_id IN (%s, %s)", (twice, failed))
    chaos.sql("UPDATE mm_run_plc SET run_sttus_name = 'SCHEDULED', wkf_job_run_id = 1 WHERE run_id = %s", (lost,))
    chaos.sql("DELETE FROM mm_run_plc WHERE run_id = %s", (gone,))
    set_back = "SET application_name = 'process_manager'; UPDATE mm_run_plc SET run_sttus_name = %s WHERE run_id = %s"
    chaos.sql(set_back, ("RUNNING", back))
    chaos.sql(set_back, ("WAITING", back))
    (chaos.folder / "0.out").write_text(f"Traceback (most recent call last): {chaos.password}")
    found = chaos.verdict(may_fail=()).breaches
    assert found["duplicate_starts"] == [twice]
    assert found["duplicate_repairs"] == ["run 5, repair 6"]
    assert found["wrongly_failed"] == [twice]
    assert found["refused"] == [twice, failed]
    assert found["unexplained"] == [twice, failed]
    assert found["lost"] == [gone, lost]
    assert found["stuck"] == [back]
    assert found["set_back"] == [back]
    assert (found["leaked"], found["tracebacks"]) == (["0.out"], ["0.out"])
    chaos.sql("UPDATE mm_run_plc SET run_sttus_name = 'SCHEDULED', wkf_job_run_id = 1 WHERE run_id = %s", (twice,))
    assert chaos.verdict().breaches["wrong_run"] == [twice]
    assert run.run_id != 1


def test_a_row_that_waits_again_pays_for_no_earlier_start(chaos: ChaosDeployment) -> None:
    """Two starts, then a second request: as many starts as requests, and still one too many."""
    (row,) = chaos.add()
    for latest in (6, 7):
        body = f'{{"job_parameters": {{"RUN_ID": "{row}"}}, "run_id": 5, "latest_repair_id": {latest}}}'
        chaos.workspace.log.add(
            time=time.time(), seconds=0.0, method="POST", path="", endpoint="runs/repair", body=body, token_hash="",
            connection="", status=200, effect=True, fault="",
        )  # fmt: skip
    for status in ("SCHEDULED", "WAITING", "SCHEDULED"):
        chaos.sql("UPDATE mm_run_plc SET run_sttus_name = %s WHERE run_id = %s", (status, row))
    assert chaos.verdict().breaches["duplicate_starts"] == [row]


def _query(chaos: ChaosDeployment, statement: str) -> list[tuple[object, ...]]:
    with closing(psycopg2.connect(chaos.environment()["PM_POSTGRES_URL"])) as connection:
        with connection.cursor() as cursor:
            cursor.execute(statement)
            found = list(cursor.fetchall())
        connection.commit()
        return found


@pytest.mark.parametrize(("when", "rows"), [("before", 0), ("after", 1)])
def test_a_connection_is_cut_on_either_side_of_a_commit(chaos: ChaosDeployment, when: When, rows: int) -> None:
    chaos.front.add(Rule("proof.change (run_id)", lambda: "cut", when, "commit"))
    with pytest.raises(psycopg2.OperationalError):
        _query(chaos, "INSERT INTO proof.change (run_id) VALUES (77) RETURNING run_id")
    assert chaos.sql("SELECT count(*) FROM proof.change WHERE run_id = 77") == [(rows,)]
    assert _query(chaos, "SELECT 1") == [(1,)]


def test_a_message_is_held_until_it_may_go_on(chaos: ChaosDeployment) -> None:
    reached, go = threading.Event(), threading.Event()

    def hold() -> Then:
        reached.set()
        go.wait(60)
        return "go on"

    chaos.front.add(Rule("SELECT 'held'", hold))
    answers: list[list[tuple[object, ...]]] = []
    asking = threading.Thread(target=lambda: answers.append(_query(chaos, "SELECT 'held'")))
    asking.start()
    assert reached.wait(60)
    assert answers == []
    go.set()
    asking.join(60)
    assert answers == [[("held",)]]


def test_rules_skip_and_end(chaos: ChaosDeployment) -> None:
    chaos.front.add(Rule("SELECT 1", lambda: "cut", skip=1, count=2))

    def works() -> bool:
        try:
            return _query(chaos, "SELECT 1") == [(1,)]
        except psycopg2.OperationalError:
            return False

    assert [works() for _ in range(5)] == [True, False, False, True, True]


def test_several_rules_act_on_one_message(chaos: ChaosDeployment) -> None:
    met: list[str] = []
    chaos.at(Moment("SELECT 2", "statement", "before"), lambda: met.append("before"))
    chaos.at(Moment("SELECT 2", "statement", "after"), lambda: met.append("after"))
    _query(chaos, "SELECT 2")
    assert met == ["before", "after"]
