"""Starts the deployed job, waits for its run, and cancels it when nobody waits any more.

All tries of one Dagster run send the same idempotency token, so they share one Databricks run. What a state means is
decided in ``deployed_job``; the outcome is put together in ``run_outcome``.
"""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from pm_dagster.errors import NeverAgain, ProcessManagerError, Unavailable
from pm_dagster.launcher.deployed_job import DeployedJobs, DeployedRun, End, choose_job
from pm_dagster.launcher.run_outcome import LaunchOutcome, RunEnd, launch_outcome
from pm_dagster.logs import fields
from pm_dagster.net.retry import Retry, asked_pause, exponential, retry

T = TypeVar("T")
_events = logging.getLogger(__name__)
#: A workspace may ask for any pause between two tries of a call.
_LONGEST_PAUSE_SECONDS = 30.0
#: How long a cancelled run is watched; cancelling is asynchronous.
_ENDING_SECONDS = 30.0


@dataclass(frozen=True)
class Order:
    """What to start and how long to wait. ``job_id`` None: the job is found by its name.

    ``tries`` and ``backoff_seconds`` are those of single calls, as in a dispatch.
    """

    token: str
    job_name: str = "Process_Manager"
    job_id: int | None = None
    deadline_seconds: float = 1200.0
    poll_seconds: float = 5.0
    tries: int = 4
    backoff_seconds: float = 1.0


class _InDoubt(Exception):
    """There is no answer, and a run may have been started."""


class Launch:
    """One start of the deployed job and the wait for its end.

    An interruption may come out of any call; it cancels the Databricks run and passes through.

    Args:
        jobs: The Jobs API of the workspace.
        order: What to start and how long to wait.
        log: Gets lines for people: the run's page and each change of its state.
        clock: Seconds.
        sleep: Waits for so many seconds.
    """

    def __init__(
        self,
        jobs: DeployedJobs,
        order: Order,
        log: logging.Logger,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._jobs, self._order, self._log = jobs, order, log
        self._clock, self._sleep = clock, sleep
        self._may_run = False
        self._run_id: int | None = None
        self._told = ""

    def run(self) -> LaunchOutcome:
        """Start the job and wait for the end of its run.

        Once the run is known, trouble with the workspace is part of the outcome.

        Raises:
            Unavailable: Certainly no run exists, so that another try loses none.
            NeverAgain: No run is known to exist.
        """
        job_id = self._order.job_id or self._find()
        try:
            self._run_id = self._start(job_id)
            ended = self._follow(job_id, self._run_id)
        except ProcessManagerError:
            raise
        except BaseException:
            self._abandon(job_id)
            raise
        return launch_outcome(ended, self._jobs, self._retry, self._log)

    def _find(self) -> int:
        name = self._order.job_name
        return choose_job(self._retry("jobs/list", lambda: self._jobs.find_jobs(name)), name)

    def _start(self, job_id: int) -> int:
        try:
            run_id = self._start_known(job_id)
        except NeverAgain as error:
            if self._may_run:
                self._complain(f"An earlier try may have started a run of Databricks job {job_id}", error)
            raise
        _events.debug("deployed job started", extra=fields(job_id=job_id, databricks_run_id=run_id))
        self._log.info(
            "Waiting for Databricks run %s of job %s: %s", run_id, job_id, self._jobs.page_url(job_id, run_id)
        )
        return run_id

    def _start_known(self, job_id: int) -> int:
        """Send run-now until the workspace answers, as long as a run may have been started.

        A lost answer leaves it unknown whether the run exists. Only with the answer can another try continue the wait.
        """
        unknown = f"run-now of Databricks job {job_id} got no answer and may have started a run"
        until_known = Retry(
            itertools.repeat(self._order.poll_seconds), _InDoubt, math.inf, within=self._order.deadline_seconds
        )

        def ask() -> int:
            try:
                return self._retry("run-now", lambda: self._send(job_id))
            except Unavailable as error:
                if not self._may_run:
                    raise
                self._tell(logging.WARNING, f"{unknown}; sending run-now again with the same token: {error}")
                raise _InDoubt(str(error)) from None

        try:
            return retry(ask, until_known, what="run-now in doubt", sleep=self._sleep, clock=self._clock)
        except _InDoubt as error:
            raise NeverAgain(f"{unknown}, which may still run: {error}") from None

    def _send(self, job_id: int) -> int:
        """run-now, remembering from before the call whether there may be a run that nobody has the id of."""
        earlier, self._may_run = self._may_run, True
        try:
            return self._jobs.start(job_id, self._order.token)
        except ProcessManagerError as error:
            self._may_run = earlier or bool(getattr(error, "maybe_applied", False))
            raise

    def _follow(self, job_id: int, run_id: int) -> RunEnd:
        began = self._clock()
        run, lost = self._wait(run_id, began + self._order.deadline_seconds)
        waited = self._clock() - began
        end, cancelled = (run.end if run else None), False
        if end is None:
            end = End.LOST if lost else End.OVERDUE
            cancelled = self._cancel(job_id, run_id)
            if cancelled:
                run = self._wait(run_id, self._clock() + _ENDING_SECONDS)[0] or run
            # It may have succeeded in the very moment that it was cancelled.
            end = End.SUCCEEDED if run and run.end is End.SUCCEEDED else end
        return RunEnd(job_id, run_id, end, waited, run, lost, cancelled)

    def _wait(self, run_id: int, until: float) -> tuple[DeployedRun | None, str]:
        """The run as last seen, ended unless time was up; and why it cannot be followed any more, if so."""
        run: DeployedRun | None = None
        while True:
            pause = self._order.poll_seconds
            try:
                run = self._jobs.look_up(run_id)
                _events.debug("run looked up", extra=fields(databricks_run_id=run_id, state=run.words))
                self._tell(logging.INFO, f"Databricks run {run_id} is {run.words}")
            except Unavailable as error:
                self._tell(logging.WARNING, f"Databricks run {run_id} cannot be looked up now; trying again: {error}")
                pause = max(pause, asked_pause(error))
            except NeverAgain as error:
                return run, str(error)
            rest = until - self._clock()
            if rest <= 0 or (run and run.end):
                return run, ""
            self._sleep(min(pause, rest))

    def _tell(self, level: int, text: str) -> None:
        """Log a change, and nothing while all stays as it was."""
        if text != self._told:
            self._log.log(level, self._jobs.scrub(text))
        self._told = text

    def _cancel(self, job_id: int, run_id: int) -> bool:
        page = self._jobs.page_url(job_id, run_id)
        # Logged first: a second interruption may end the process in the middle of the call.
        _events.debug("run cancelled", extra=fields(job_id=job_id, databricks_run_id=run_id))
        self._log.warning("Cancelling Databricks run %s: %s", run_id, page)
        try:
            self._retry("runs/cancel", lambda: self._jobs.cancel(run_id))
        except ProcessManagerError as error:
            self._complain(f"Databricks run {run_id} could not be cancelled and may still run: {page}", error)
            return False
        return True

    def _abandon(self, job_id: int) -> None:
        """Cancel the run, also one whose id was never answered: run-now with the same token gives its id."""
        if not self._may_run:
            return
        try:
            run_id = self._run_id or self._retry("run-now", lambda: self._jobs.start(job_id, self._order.token))
        except ProcessManagerError as error:
            self._complain(f"A run of Databricks job {job_id} may have been started and may still run", error)
            return
        self._cancel(job_id, run_id)

    def _complain(self, text: str, error: ProcessManagerError) -> None:
        self._log.log(logging.ERROR, "%s (%s)", text, self._jobs.scrub(str(error)))

    def _retry(self, what: str, call: Callable[[], T]) -> T:
        """The call, repeated while the workspace gives no answer and tries are left."""
        pauses = tuple(exponential(self._order.backoff_seconds, self._order.tries - 1))
        return retry(call, Retry(pauses, longest_pause=_LONGEST_PAUSE_SECONDS), what=what, sleep=self._sleep)
