"""What the dispatchers' environment does: the owner of the rows, the workspace, its other users, the operator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from pm_dagster.dispatch.model import Call
from pm_dagster.dispatch.waiting_job import RawRow
from pm_dagster_tests.model.harness import JOBS, SETTINGS, UNKNOWN_JOB, Harness
from pm_dagster_tests.model.oracle import Oracle
from pm_dagster_tests.model.stepped_dispatcher import Clock

T = TypeVar("T")
_MOST_ROWS = 4
LONG = 5_000.0
NUMBER = st.integers(0, 3)
#: A job that the row's number may lead to; mostly one that is there.
JOB = st.sampled_from([JOBS[0], JOBS[0], JOBS[1], UNKNOWN_JOB, None])
PAST = st.sampled_from(["fail", "fail", "fail", "succeed", "active", "skipped", "gone"])
STATUS = st.sampled_from(["WAITING", "WAITING", "RUNNING", "SUCCESS", "FAILED", "CANCELED"])
END = st.sampled_from(["fail", "fail", "succeed", "cancel"])
CALL = st.sampled_from([Call.RUN_NOW, Call.RUN_NOW, Call.REPAIR, Call.REPAIR, Call.GET_RUN, Call.LIST_RUNS])
KIND = st.sampled_from(["lost", "lost", "foreign", "unsent", "throttled", "long", "credentials", "busy", "refused"])

SELDOM = ["change the job's existence", "change the policy", "start by hand", "remove the row", "redrive", "redrive"]


class EnvironmentRules(RuleBasedStateMachine):
    """See the module. Each example begins with an empty ``harness``."""

    def __init__(self, harness: Harness) -> None:
        super().__init__()
        self.harness = harness
        self.oracle = Oracle(harness)
        self.clock = Clock()
        self.read: list[RawRow] = []
        self.settings = SETTINGS

    @initialize(jobs=st.lists(JOB, max_size=2), pasts=st.lists(PAST, max_size=2))
    def begin(self, jobs: list[int | None], pasts: list[str]) -> None:
        """What is there at first."""
        for job_id in jobs:
            self.add_new(job_id)
        for past in pasts:
            self.add_repair(past, 1)

    # ---- the owner

    @precondition(lambda self: len(self.oracle.rows) < _MOST_ROWS)
    @rule(job_id=JOB)
    def add_new(self, job_id: int | None) -> None:
        """Work without an earlier run; a job that is not there, or none, makes it a bad row."""
        self.harness.add_row(job_id, None)
        self._seen()

    @precondition(lambda self: len(self.oracle.rows) < _MOST_ROWS)
    @rule(past=PAST, repairs=st.integers(0, 2))
    def add_repair(self, past: str, repairs: int) -> None:
        """Work with an earlier run."""
        run_id = self.harness.past_run("fail" if past == "gone" else past, repairs)
        self._seen()
        if past == "gone":
            self.harness.delete(run_id)
        self.harness.add_row(JOBS[0], run_id)
        self._seen()

    @rule(number=NUMBER, status=STATUS, keep=st.booleans())
    def set_status(self, *, number: int, status: str, keep: bool) -> None:
        """The owner or the row's job changes a row; a row that waits again may or may not keep its run."""
        for row in self._chosen(list(self.oracle.rows), number):
            now = self.oracle.rows[row]
            self.harness.set_row(row, status, now.previous_run_id if keep else None)
        self._seen()

    @rule(number=NUMBER)
    def ask_again(self, number: int) -> None:
        """What is left of a row's run ends badly, and the owner asks for it again, as after a night's failures."""
        for row in self._chosen(list(self.oracle.rows), number):
            previous = self.oracle.rows[row].previous_run_id
            if previous is not None and previous in self._active():
                self.harness.finish(previous, "fail")
            self._seen()
            self.harness.set_row(row, "FAILED", previous)
            self._seen()
            self.harness.set_row(row, "WAITING", previous)
        self._seen()

    @rule(number=NUMBER, job_id=st.sampled_from(JOBS))
    def set_job(self, number: int, job_id: int) -> None:
        """The owner corrects the job."""
        for row in self._chosen(list(self.oracle.rows), number):
            self.harness.set_job(row, job_id)
        self._seen()

    # ---- the workspace and others who use it

    @rule(number=NUMBER, outcome=END)
    def finish_run(self, number: int, outcome: str) -> None:
        """A run ends."""
        for run_id in self._chosen(self._active(), number):
            self.harness.finish(run_id, outcome)
        self._seen()

    @rule(number=NUMBER)
    def delete_run(self, number: int) -> None:
        """A run that is over is removed."""
        over = [run_id for run_id, run in self.harness.runs().items() if not run.active]
        for run_id in self._chosen(over, number):
            self.harness.delete(run_id)
        self._seen()

    @rule(number=NUMBER)
    def repair_elsewhere(self, number: int) -> None:
        """Somebody repairs a run by hand."""
        runs = self.harness.runs()
        over = [run_id for run_id, run in runs.items() if not run.active and not run.succeeded]
        for run_id in self._chosen(over, number):
            self.harness.repair_elsewhere(run_id)
        self._seen()

    @rule(reads=st.integers(1, 3))
    def lag(self, reads: int) -> None:
        """What happens from now on does not show for some reads."""
        self.harness.lag(reads)

    @rule(
        call=CALL,
        kinds=st.lists(KIND, min_size=1, max_size=3),
        after=st.booleans(),
        good=st.sampled_from([0, 0, 0, 1, 2]),
    )
    def arm(self, *, call: Call, kinds: list[str], after: bool, good: int) -> None:
        """The next calls of a kind go wrong, after some good ones."""
        for kind in kinds:
            self.harness.arm(call, kind, after=after, good=good)
            good = 0

    @rule(seconds=st.sampled_from([1.0, 40.0, LONG]))
    def pass_time(self, seconds: float) -> None:
        """Time goes by."""
        self.clock.now += seconds
        self.harness.pass_time(seconds)

    # ---- the rest of the owner, the workspace and the operator: what is seldom

    @rule(what=st.sampled_from(SELDOM), number=NUMBER, there=st.booleans())
    def seldom(self, *, what: str, number: int, there: bool) -> None:
        """One step for all of it, so that it does not crowd out the others; ``there`` for what has two sides."""
        if what == "change the job's existence":
            self.harness.set_job_exists(JOBS[number % len(JOBS)], exists=there)
        elif what == "change the policy":
            self.settings = replace(SETTINGS, missing_run="fresh-run" if there else "fail")
        for row in self._chosen(list(self.oracle.rows), number):
            if what == "start by hand":
                self.harness.start_elsewhere(row)
            elif what == "remove the row":
                self.harness.remove_row(row)
            elif what == "redrive":
                self.harness.redrive(row)
        self._seen()

    # ---- inside

    def _seen(self) -> None:
        self.oracle.observe(dispatcher=False)

    def _active(self) -> list[int]:
        return [run_id for run_id, run in self.harness.runs().items() if run.active]

    def _chosen(self, among: Sequence[T], number: int) -> list[T]:
        return [among[number % len(among)]] if among else []
