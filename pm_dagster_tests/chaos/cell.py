"""Runs one cell of the matrix: rows, a fault, a death, later dispatches, the verdict.

Put here: the course of a cell. Keep out: what faults and boundaries are.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from pm_dagster_tests.chaos.boundaries import AHEAD_SETTINGS, Boundary, moment
from pm_dagster_tests.chaos.deployment import JOB, ChaosDeployment
from pm_dagster_tests.chaos.faults import NOT_QUITE_WAITING
from pm_dagster_tests.chaos.matrix import REFUSING, VARIANTS, Cell
from pm_dagster_tests.chaos.oracle import Verdict
from pm_dagster_tests.ledger.postgres_control_table import eventually

#: Dispatches that may come after the first: one for what was cut off, one for what had to settle, and the same again
#: where the fault only met the second.
LATER_DISPATCHES = 5


@dataclass(frozen=True)
class Rows:
    """The rows of a cell by the branch they need."""

    new: list[int]
    repair: list[int]

    def of(self, call: str) -> list[int]:
        """The rows that the call is made for."""
        return self.new if call == "run-now" else self.repair


@dataclass(frozen=True)
class Result:
    """How a cell ended. ``reached``: the process died where it should (or was not to die).

    ``requests``: those that the workspace saw.
    """

    cell: Cell
    verdict: Verdict
    reached: bool
    hit: bool
    dispatches: int
    requests: int
    story: str

    @property
    def good(self) -> bool:
        """Whether everything happened, and nothing that must not."""
        return self.verdict.clean and self.reached and self.hit

    def __str__(self) -> str:
        flaws = [] if self.reached else ["the boundary was not reached"]
        flaws += [] if self.hit else ["the fault met nothing"]
        return f"{self.cell.name}: {self.verdict}, {self.dispatches} dispatches {flaws or ''}\n{self.story}"


def run_cell(deployment: ChaosDeployment, cell: Cell) -> Result:
    """Let the first dispatch meet fault and death, let later ones finish, and judge."""
    rows = _rows(deployment, cell)
    _apply(deployment, cell)
    mark = moment(cell.boundary, cell.call)
    doom = None if mark is None else deployment.kill_at(mark)
    ahead = AHEAD_SETTINGS if cell.boundary is Boundary.SUBMITTED_AHEAD else {}
    deployment.dispatch(**cell.fault.settings, **ahead)
    if doom is not None:
        deployment.front.remove(doom)
    # What is held is to be met while it is held.
    missed = deployment.release() and bool(deployment.front.unmet())
    hit = _renewed(deployment, cell)
    for _ in range(LATER_DISPATCHES):
        if _settled(deployment):
            break
        deployment.forget_the_dead()
        deployment.later()
        deployment.dispatch(**cell.fault.settings)
        hit = _renewed(deployment, cell) or hit
    _rest(deployment)
    definite = cell.fault.may_fail + (("runs/repair",) if cell.variant in REFUSING else ())
    verdict = deployment.verdict(may_fail=[row for call in definite for row in rows.of(call)])
    reached = doom is None or doom.met > 0
    hit = hit and not missed and not deployment.front.unmet()
    dispatches = len(deployment.started)
    verdict.breaches["unexplained"] += _unnamed(deployment)
    return Result(cell, verdict, reached, hit, dispatches, len(deployment.workspace.log.entries()), _story(deployment))


def _rows(deployment: ChaosDeployment, cell: Cell) -> Rows:
    """Two rows of each branch, and more where calls are to be ahead; of the earlier runs, one was repaired, twice."""
    more = 4 if cell.boundary is Boundary.SUBMITTED_AHEAD else 0
    of_new, of_repairs = (more, 0) if cell.call == "run-now" else (0, more)
    repairs = [deployment.add_repair(repairs=repairs)[0] for repairs in (0, 2, *[0] * of_repairs)]
    return Rows(deployment.add(2 + of_new), repairs)


def _apply(deployment: ChaosDeployment, cell: Cell) -> None:
    variant = dict(VARIANTS.get(cell.variant, {}))
    job = deployment.workspace.state.job(JOB)
    if "outcome" in variant:
        job.outcomes, job.seconds = [str(variant.pop("outcome"))], float(str(variant.pop("seconds")))
    deployment.workspace.switches.set(**variant)
    cell.fault.install(deployment, cell.call)


def _renewed(deployment: ChaosDeployment, cell: Cell) -> bool:
    """Whether the fault has met a call; credentials that were seen to have expired are renewed."""
    rules = deployment.workspace.faults.rules()
    fired = not rules or any(int(rule["fired"]) > 0 for rule in rules)
    if fired and cell.fault.stops:
        deployment.workspace.faults.clear()
    return fired


def _settled(deployment: ChaosDeployment) -> bool:
    open_entries = deployment.sql("SELECT FROM process_manager.entry WHERE open")
    waiting = [row for row, status in deployment.statuses().items() if status == "WAITING"]
    return not open_entries and not waiting


def _unnamed(deployment: ChaosDeployment) -> list[int]:
    """The rows that nobody can take and of which `pm status` does not say why."""
    shown = [row for row, status in deployment.statuses().items() if status == NOT_QUITE_WAITING]
    if not shown:
        return []
    said = json.loads(deployment.dispatch("status", "--json").out or '{"untakeable": []}')["untakeable"]
    named = {each["run_id"] for each in said if each["reason"] and each["remedy"]}
    return [row for row in shown if row not in named]


def _rest(deployment: ChaosDeployment) -> None:
    """Wait for the requests that still hang in the workspace: their effect counts, too."""
    workspace = deployment.workspace

    def ended() -> bool:
        fired = sum(int(rule["fired"]) for rule in workspace.faults.rules())
        return sum(bool(request.fault) for request in workspace.log.entries()) >= fired

    eventually(ended, "every request that hangs comes to its end")


def _story(deployment: ChaosDeployment) -> str:
    """For a cell that failed: what the ledger and the workspace saw."""
    told = deployment.sql("""
        SELECT e.run_id, v.dispatcher_id, v.kind, coalesce(v.call, ''), v.detail FROM process_manager.event v
        LEFT JOIN process_manager.entry e USING (entry_id) ORDER BY event_id""")
    lines = [" ".join(str(part) for part in line) for line in told]
    lines += [
        f"{r.endpoint} {r.status} {r.fault} effect={r.effect} {r.body}" for r in deployment.workspace.log.entries()
    ]
    return "\n".join([*lines, str(deployment.statuses()), *(process.err for process in deployment.started)])
