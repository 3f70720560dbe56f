"""What goes wrong in a cell, in the words of the sandbox: the faults of the matrix.

Put here: each fault's name and how the workspace is told to have it. Keep out: which cells there are (``matrix.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

from pm_dagster_tests.chaos.boundaries import Boundary, moment
from pm_dagster_tests.chaos.deployment import JOB, ChaosDeployment, Moment

CALLS = ("run-now", "runs/get", "runs/repair")
_STARTING = ("run-now", "runs/repair")
#: Longer than the client's patience in the cells that hang, so that an effect can come after it.
HANG_SECONDS, HANG_TIMEOUT = 1.6, "0.8"
#: As a view may take for WAITING, and the control table does not.
NOT_QUITE_WAITING = "Waiting"
#: How many calls of the kind are hit: both rows of a branch.
HITS = 2

Install = Callable[[ChaosDeployment, str], None]


@dataclass(frozen=True, eq=False)
class Fault:
    """One line of the matrix.

    ``install`` tells the deployment, for a call, before the first dispatch. ``only`` names the calls it can be about,
    and ``why`` says why not the others. ``stops``: the dispatch ends at it, so that later boundaries are not reached.
    ``may_fail``: the calls for whose rows it is a definite no, so that they may end FAILED with a reason.
    ``announces_no_repair``: nothing is left to repair after it.
    """

    name: str
    install: Install
    only: tuple[str, ...] = CALLS
    why: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)
    stops: bool = False
    may_fail: tuple[str, ...] = ()
    announces_no_repair: bool = False


def _answering(kind: str, when: str, **details: Any) -> Install:  # noqa: ANN401 the fields of the sandbox's Fault
    def install(deployment: ChaosDeployment, call: str) -> None:
        deployment.workspace.faults.add(call, kind, when, count=HITS, **details)

    return install


def _throttling(retry_after: Callable[[], str | None]) -> Install:
    def install(deployment: ChaosDeployment, call: str) -> None:
        value = retry_after()
        headers = {} if value is None else {"retry-after": value}
        code, message = "REQUEST_LIMIT_EXCEEDED", "Rate limit exceeded."
        deployment.workspace.faults.add(
            call, "status", count=HITS, status=429, code=code, message=message, headers=headers
        )

    return install


def _soon() -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)


def _expired(status: int, code: str, message: str) -> Install:
    """Credentials that expire at the first call of the kind: from there on nothing is allowed."""

    def install(deployment: ChaosDeployment, call: str) -> None:
        for endpoint in (call, "scim/Me"):
            deployment.workspace.faults.add(endpoint, "status", count=None, status=status, code=code, message=message)

    return install


_HTML = {"status": 404, "body": "<html><body>Not Found</body></html>", "headers": {"content-type": "text/html"}}
_NO_API = {"status": 404, "code": "ENDPOINT_NOT_FOUND", "message": "No API found for this"}
_TOO_LARGE = {"status": 413, "body": "Request Entity Too Large", "headers": {"content-type": "text/plain"}}
_LOCKED = {"status": 400, "code": "COULD_NOT_ACQUIRE_LOCK", "message": "Could not acquire lock"}


def _foreign_token(deployment: ChaosDeployment, call: str) -> None:
    """A token of another workspace: plain text, and a 400, to every call from the first of the kind on."""
    text = {"content-type": "text/plain"}
    for endpoint in (call, "scim/Me"):
        deployment.workspace.faults.add(endpoint, "status", count=None, status=400, body="Invalid Token", headers=text)


def _forbid_everybody(deployment: ChaosDeployment, call: str) -> None:
    """A maintenance: nobody may make the call, whatever his rights, in two dispatches of both rows, twice each."""
    code, message = "PERMISSION_DENIED", f"User x does not have Manage Run or Owner or Admin permissions on job {JOB}."
    deployment.workspace.faults.add(call, "status", count=4 * HITS, status=403, code=code, message=message)


def _at(boundary: Boundary, act: Callable[[ChaosDeployment], object]) -> Install:
    """Do something to the workspace at a boundary of the dispatch, which goes on."""

    def install(deployment: ChaosDeployment, call: str) -> None:
        deployment.at(_certain(moment(boundary, call)), lambda: act(deployment))

    return install


def _certain(found: Moment | None) -> Moment:
    assert found is not None
    return found


def _delete_runs(deployment: ChaosDeployment, call: str) -> None:
    """The runs that the call is about end, where they are under way, and vanish."""
    state = deployment.workspace.state
    started = call == "run-now"
    for run in state.runs():
        if (len(run.attempts) == 1 and "RUN_ID" in run.parameters) is started:
            if run.last.active:
                state.finish(run.run_id, "cancel")
            state.delete_run(run.run_id)


def _delete_run(deployment: ChaosDeployment, call: str) -> None:
    # A started run after its start, an earlier run before the call that needs it.
    where = {"run-now": Boundary.AFTER_REPLY, "runs/get": Boundary.AFTER_CLAIM, "runs/repair": Boundary.AFTER_INTENT}
    _at(where[call], lambda each: _delete_runs(each, call))(deployment, call)


def _delete_run_unheard(deployment: ChaosDeployment, call: str) -> None:
    """The call takes effect, its answer is lost, and the run vanishes before anybody can ask for it."""
    deployment.workspace.faults.add(call, "reset", "after", count=HITS)
    _at(Boundary.AFTER_REPLY, lambda each: _delete_runs(each, call))(deployment, call)


def _forbid_looking(deployment: ChaosDeployment, call: str) -> None:
    """The call takes effect, its answer is lost, and the run may not be read for a while."""
    deployment.workspace.faults.add(call, "reset", "after", count=HITS)
    # The first look-ups, before the repairs, are allowed.
    code, message = "PERMISSION_DENIED", "You may not view this run."
    deployment.workspace.faults.add("runs/get", "status", skip=HITS, count=HITS, status=403, code=code, message=message)


def _delete_job(deployment: ChaosDeployment, call: str) -> None:
    _at(Boundary.AFTER_CLAIM, lambda each: each.workspace.state.delete_job(JOB))(deployment, call)


def _new_words(deployment: ChaosDeployment, call: str) -> None:
    """Earlier runs that are really under way, in a state that has no name yet."""
    deployment.workspace.switches.set(unknown_states=True)
    deployment.resume_earlier_runs()
    del call


def _stale(deployment: ChaosDeployment, call: str) -> None:
    """The history lags: for a look-up behind somebody else's repair, for a repair behind our own, unheard one."""
    deployment.workspace.switches.set(history_lag_reads=HITS)
    if call == "runs/repair":
        deployment.workspace.faults.add(call, "reset", "after", count=HITS)


#: A sequence counts on when its transaction is undone, so the trouble passes by itself.
_REFUSING = """
CREATE SEQUENCE refusals; GRANT USAGE ON SEQUENCE refusals TO PUBLIC;
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF current_setting('application_name') = 'process_manager' AND nextval('refusals') <= {times} THEN
        RAISE EXCEPTION 'not now' USING ERRCODE = '{code}';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER refuse BEFORE UPDATE ON mm_run_plc FOR EACH ROW EXECUTE FUNCTION refuse()
"""


def _refusing(code: str, times: int) -> Install:
    """The control table takes no write for a while, from the claim on: the closing meets it."""

    def install(deployment: ChaosDeployment, call: str) -> None:
        _at(Boundary.AFTER_CLAIM, lambda each: each.sql(_REFUSING.format(code=code, times=times)))(deployment, call)

    return install


#: Of each branch the older row, so that the death meets a dispatch that has the younger ones in hand.
_OLDER = """
SELECT FROM mm_run_plc WHERE run_id IN (SELECT min(run_id) FROM mm_run_plc GROUP BY wkf_job_run_id IS NULL) FOR UPDATE
"""
_LOOSE_VIEW = """
CREATE OR REPLACE VIEW mm_run_wait_vw AS
SELECT run_id, cntrt_id, file_name, wkf_job_id, wkf_job_run_id FROM mm_run_plc WHERE upper(run_sttus_name) = 'WAITING';
INSERT INTO mm_run_plc (cntrt_id, run_sttus_name, wkf_job_id, file_name, rgstr_file_time)
SELECT 7, '{status}', {job}, 'file.csv', now() AT TIME ZONE 'UTC' - interval '1 day' FROM generate_series(1, 2)
"""


def _hold_rows(deployment: ChaosDeployment, call: str) -> None:
    """Rows that their owner holds locked during the whole first dispatch, which claims the others meanwhile."""
    deployment.hold(_OLDER)
    _at(Boundary.BEFORE_CLAIM, lambda _: None)(deployment, call)


def _loose_view(deployment: ChaosDeployment, call: str) -> None:
    """The oldest rows of the view are none that the table calls waiting: nobody may take or write them."""
    deployment.sql(_LOOSE_VIEW.format(status=NOT_QUITE_WAITING, job=JOB))
    del call


_BROKEN: Mapping[str, tuple[str, dict[str, Any]]] = {
    "reset": ("reset", {}),
    "500": ("status", {"status": 500, "code": "INTERNAL_ERROR"}),
    "502": ("status", {"status": 502}),
    "503": ("status", {"status": 503}),
    "504": ("status", {"status": 504}),
    "truncated body": ("truncated", {}),
    "HTML": ("html", {}),
    "hang past the time-out": ("hang", {"seconds": HANG_SECONDS}),
}


def _broken_answers() -> list[Fault]:
    found = []
    for name, (kind, details) in _BROKEN.items():
        settings = {"PM_HTTP_TIMEOUT_SECONDS": HANG_TIMEOUT} if kind == "hang" else {}
        for when in ("before", "after"):
            only, why = (CALLS, "") if when == "before" else (_STARTING, "a read has no effect")
            install = _answering(kind, when, **details)
            found.append(Fault(f"{name}, {when}", install, only, why, settings))
    return found


FAULTS: tuple[Fault, ...] = (
    *_broken_answers(),
    Fault("429", _throttling(lambda: None)),
    Fault("429, Retry-After 1", _throttling(lambda: "1")),
    Fault("429, Retry-After 86400", _throttling(lambda: "86400"), announces_no_repair=True),
    Fault("429, Retry-After a date", _throttling(_soon)),
    Fault("401, credentials expired", _expired(401, "UNAUTHENTICATED", "The access token expired."), stops=True),
    Fault("403, invalid token", _expired(403, "PERMISSION_DENIED", "Invalid access token."), stops=True),
    Fault("400, token of another workspace", _foreign_token, stops=True),
    Fault("403 to everybody", _forbid_everybody, announces_no_repair=True),
    Fault("404 of a gateway, before", _answering("status", "before", **_HTML)),
    Fault("404 of a gateway, after", _answering("status", "after", **_HTML), _STARTING, "a read has no effect"),
    Fault("404 of an account's host", _answering("status", "before", **_NO_API)),
    Fault("413 of a proxy", _answering("status", "before", **_TOO_LARGE)),
    Fault("400, a lock that is taken", _answering("status", "before", **_LOCKED)),
    Fault("run deleted", _delete_run, may_fail=CALLS, announces_no_repair=True),
    Fault("answer lost, run deleted", _delete_run_unheard, _STARTING, "a read has no effect", may_fail=CALLS),
    Fault(
        "answer lost, then 403",
        _forbid_looking,
        ("runs/repair",),
        "nothing is looked up after it",
        # After a death it may meet the first look-up of a row; "wrongly failed" still counts those under repair.
        may_fail=("runs/repair",),
    ),
    Fault("job deleted", _delete_job, _STARTING, "a run can be read without its job", may_fail=("run-now",)),
    Fault("a new state", _new_words, ("runs/get",), "only a run's state has such words", announces_no_repair=True),
    Fault("the table refuses the write at first", _refusing("P0001", 5)),
    Fault("the database is read-only at first", _refusing("25006", 2)),
    Fault("the owner holds the rows locked at first", _hold_rows),
    Fault("a view that shows rows the table does not call waiting", _loose_view),
    Fault("a stale history", _stale, ("runs/get", "runs/repair"), "a new run has no history"),
)
