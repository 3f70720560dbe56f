"""Other writers of the control table while a dispatch is under way: nothing is set back, nothing runs twice."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import closing

import psycopg2
import pytest

from pm_dagster_tests.chaos.boundaries import Boundary, moment
from pm_dagster_tests.chaos.deployment import JOB, ChaosDeployment
from pm_dagster_tests.chaos.finishing import assert_clean, finish, story
from pm_dagster_tests.ledger.postgres_control_table import eventually

OTHER_JOB = 2002
BOUNDARIES = [each for each in Boundary if each not in (Boundary.NONE, Boundary.SUBMITTED_AHEAD)]
#: At the first of these the owner's write has to wait for the closing's lock.
_CLOSED = (Boundary.BEFORE_CLOSING, Boundary.AFTER_CLOSING)
_SET = "UPDATE mm_run_plc SET run_sttus_name = %s WHERE run_id = %s"
_WAITS = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'owner' AND wait_event_type = 'Lock'"
#: The short form has the moments between which a row is sent and not yet closed, where a wrong write would be easiest.
_SHORT = [Boundary.AFTER_CLAIM, Boundary.AFTER_REPLY]
_LONG = [pytest.param(each, marks=[] if each in _SHORT else pytest.mark.chaos) for each in BOUNDARIES]


class Owner:
    """Another writer: its statement may have to wait for a lock of the dispatch, which goes on meanwhile."""

    def __init__(self, deployment: ChaosDeployment) -> None:
        self._deployment = deployment
        self._thread = threading.Thread(target=lambda: None)
        self.failed: list[psycopg2.Error] = []

    def write(self, *statements: tuple[str, tuple[object, ...]]) -> None:
        """Commit each statement by itself; returns when all are done or one waits for a lock."""
        self._thread = threading.Thread(target=self._write, args=(statements,))
        self._thread.start()
        eventually(lambda: not self._thread.is_alive() or self._deployment.sql(_WAITS) != [(0,)], "the owner writes")

    def done(self) -> None:
        """Wait for the writing, which must have gone well."""
        self._thread.join(60)
        assert self.failed == []

    def _write(self, statements: tuple[tuple[str, tuple[object, ...]], ...]) -> None:
        try:
            with closing(psycopg2.connect(self._deployment.database_url, application_name="owner")) as connection:
                connection.autocommit = True
                with connection.cursor() as cursor:
                    for statement, values in statements:
                        cursor.execute(statement, values)
        except psycopg2.Error as error:
            self.failed.append(error)


def add(deployment: ChaosDeployment, call: str) -> int:
    """A row that needs this call."""
    return deployment.add()[0] if call == "run-now" else deployment.add_repair(repairs=1)[0]


def run_of(deployment: ChaosDeployment, row: int) -> int | None:
    """The run that carries the row's id, if there is one."""
    found = [run.run_id for run in deployment.workspace.state.runs() if run.parameters.get("RUN_ID") == str(row)]
    return found[-1] if found else None


def starts_after(boundary: Boundary) -> tuple[int, ...]:
    """How often a row may be started from which the owner withdrew at this boundary.

    Before the claim commits the owner has to wait for its lock, and then runs a race with the intent.
    """
    return {Boundary.BEFORE_CLAIM: (0, 1), Boundary.AFTER_CLAIM: (0,)}.get(boundary, (1,))


def dispatch_while(deployment: ChaosDeployment, boundary: Boundary, call: str, act: Callable[[Owner], None]) -> None:
    """One dispatch, in which the owner acts at the boundary; then later ones until all is done."""
    owner = Owner(deployment)
    mark = moment(boundary, call)
    assert mark is not None
    rule = deployment.at(mark, lambda: act(owner))
    deployment.dispatch()
    assert rule.fired.wait(30)
    owner.done()
    assert deployment.started[0].process.exitcode == 0, story(deployment)
    finish(deployment)


@pytest.mark.parametrize("call", ["run-now", "runs/repair"])
@pytest.mark.parametrize("status", ["RUNNING", "CANCELED"])
@pytest.mark.parametrize("boundary", _LONG)
def test_a_status_that_somebody_else_wrote_stays(
    chaos: ChaosDeployment, boundary: Boundary, status: str, call: str
) -> None:
    row = add(chaos, call)
    dispatch_while(chaos, boundary, call, lambda owner: owner.write((_SET, (status, row))))
    assert chaos.statuses() == {row: status}
    assert len(chaos.oracle.starts()) in starts_after(boundary)
    assert_clean(chaos)


@pytest.mark.parametrize("call", ["run-now", "runs/repair"])
@pytest.mark.parametrize("boundary", _LONG)
def test_a_row_that_is_deleted_under_way(chaos: ChaosDeployment, boundary: Boundary, call: str) -> None:
    row = add(chaos, call)
    delete = ("DELETE FROM mm_run_plc WHERE run_id = %s", (row,))
    dispatch_while(chaos, boundary, call, lambda owner: owner.write(delete))
    assert chaos.statuses() == {}
    assert len(chaos.oracle.starts()) in starts_after(boundary)
    assert_clean(chaos, may_vanish=[row])


@pytest.mark.parametrize("call", ["run-now", "runs/repair"])
@pytest.mark.parametrize("boundary", _LONG)
def test_a_row_that_runs_and_waits_again(chaos: ChaosDeployment, boundary: Boundary, call: str) -> None:
    """With the run it has by then: a run that is under way is adopted, whichever generation it began in."""
    row = add(chaos, call)
    again = [(_SET, ("RUNNING", row)), (_SET, ("WAITING", row))]
    dispatch_while(chaos, boundary, call, lambda owner: owner.write(*again))
    assert chaos.statuses() == {row: "SCHEDULED"}
    assert len(chaos.oracle.starts()) == 1
    assert_clean(chaos)


@pytest.mark.parametrize("call", ["run-now", "runs/repair"])
@pytest.mark.parametrize("boundary", _LONG)
def test_a_row_that_waits_again_without_a_run(chaos: ChaosDeployment, boundary: Boundary, call: str) -> None:
    """While its generation is open it is the same work; once that is closed it is new work.

    Before the claim commits the owner's writes wait for its lock, and then run a race with intent and closing.
    Who takes the earlier run's id away from a row whose repair is sent asks for something else: a new run.
    """
    row = add(chaos, call)
    again = ("UPDATE mm_run_plc SET run_sttus_name = 'WAITING', wkf_job_run_id = NULL WHERE run_id = %s", (row,))
    dispatch_while(chaos, boundary, call, lambda owner: owner.write((_SET, ("RUNNING", row)), again))
    assert chaos.statuses() == {row: "SCHEDULED"}
    corrected = call == "runs/repair" and boundary in (Boundary.AFTER_INTENT, Boundary.AFTER_REPLY)
    once = (1, 2) if boundary is Boundary.BEFORE_CLAIM else (1,)
    assert len(chaos.oracle.starts()) in ((2,) if boundary in _CLOSED or corrected else once)
    assert_clean(chaos)


@pytest.mark.parametrize("boundary", _LONG)
def test_a_job_that_is_corrected_under_way(chaos: ChaosDeployment, boundary: Boundary) -> None:
    """What the row says at the intent is what is sent; corrected after it, the row's own job is started as well."""
    chaos.workspace.state.add_job("other", OTHER_JOB, seconds=None)
    row = add(chaos, "run-now")
    correct = ("UPDATE mm_run_plc SET wkf_job_id = %s WHERE run_id = %s", (OTHER_JOB, row))
    dispatch_while(chaos, boundary, "run-now", lambda owner: owner.write(correct))
    assert chaos.statuses() == {row: "SCHEDULED"}
    late = boundary in (Boundary.AFTER_INTENT, Boundary.AFTER_REPLY)
    once = (1, 2) if boundary is Boundary.BEFORE_CLAIM else (1,)
    assert len(chaos.oracle.starts()) in ((2,) if late else once)
    started = sorted(r.job_id for r in chaos.workspace.state.runs() if r.parameters.get("RUN_ID") == str(row))
    assert started == {
        Boundary.AFTER_INTENT: [JOB, OTHER_JOB],
        Boundary.AFTER_REPLY: [JOB, OTHER_JOB],
        Boundary.BEFORE_CLOSING: started,
        Boundary.AFTER_CLOSING: [JOB],
    }.get(boundary, started)
    assert_clean(chaos)


@pytest.mark.parametrize(
    "boundary",
    [
        pytest.param(each, marks=[] if each is Boundary.AFTER_REPLY else pytest.mark.chaos)
        for each in (Boundary.AFTER_REPLY, Boundary.BEFORE_CLOSING, Boundary.AFTER_CLOSING)
    ],
)
def test_a_run_that_fails_before_its_row_is_closed_and_is_to_be_repaired(
    chaos: ChaosDeployment, boundary: Boundary
) -> None:
    """Who writes the run's id beside WAITING asks for its repair: closing the row must not swallow that."""
    row = add(chaos, "run-now")

    def fail(owner: Owner) -> None:
        run = run_of(chaos, row)
        assert run is not None
        chaos.workspace.state.finish(run, "fail")
        statement = "UPDATE mm_run_plc SET run_sttus_name = %s, wkf_job_run_id = %s WHERE run_id = %s"
        owner.write((_SET, ("RUNNING", row)), (_SET, ("FAILED", row)), (statement, ("WAITING", run, row)))

    dispatch_while(chaos, boundary, "run-now", fail)
    assert chaos.statuses() == {row: "SCHEDULED"}
    assert [start.repaired_run for start in chaos.oracle.starts()] == [None, run_of(chaos, row)], story(chaos)
    assert_clean(chaos)
