"""A dispatcher whose steps somebody else decides: it stops before every write, and goes on, dies or lags as told.

Put here: the handing over between the dispatcher's thread and the machine's, and the ports that stop. Keep out: what
is expected of a step (``oracle``), and which step comes next (``machine``).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import Protocol

from pm_dagster.core.errors import ProcessManagerError, WorkspaceUnavailable
from pm_dagster.core.ledger_entry import Entry
from pm_dagster.core.ports import Backlog, Call, Change, Closed, ControlPlane, DatabricksRuns, Intent
from pm_dagster.core.run_state import RunSnapshot
from pm_dagster.core.waiting_job import RawRow, RefusedRow, WaitingJob

_PATIENCE_SECONDS = 120.0


class Killed(BaseException):
    """The dispatcher's process is gone; nothing that it does from here on reaches anybody."""


class Clock:
    """Seconds that pass only when somebody says so."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        """The moment."""
        return self.now


class Stop(threading.Event):
    """A dispatch's stop request, whose waiting makes the clock go on instead of the test."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def wait(self, timeout: float | None = None) -> bool:
        """Let the time pass."""
        self._clock.now += timeout or 0.0
        return self.is_set()


class Witness(Protocol):
    """Who is told, in the dispatcher's thread, what a dispatcher does."""

    def asked(self, moment: float) -> None:
        """A call or an intent begins; ``moment`` is in seconds since the dispatch began."""

    def claimed(self, entries: Sequence[Entry]) -> None:
        """Rows were taken."""

    def inherited(self, entries: Sequence[Entry]) -> None:
        """What somebody left was taken over."""

    def granted(self, entry: Entry, call: Call) -> None:
        """A call for an entry may be made now."""

    def before_call(self) -> None:
        """A call that may start something begins."""

    def after_call(self, row: int, generation: int, call: Call, *, lost: bool) -> None:
        """It ended; ``lost`` when its answer was lost."""


class Puppet:
    """One dispatcher, moved from stop to stop. ``at`` says where it stands; ``error`` what ended it, if something did.

    ``program`` is what it does, given itself.
    """

    def __init__(self, program: Callable[[Puppet], None], clock: Clock) -> None:
        self.clock = clock
        self.began = clock.now
        self.at = "start"
        self.done = False
        self.error: BaseException | None = None
        self.killed = False
        self.control: ControlPlane | None = None
        self._program = program
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, name="puppet", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self._go.acquire()
        try:
            if not self.killed:
                self._program(self)
        except (Killed, ProcessManagerError) as error:
            self.error = error
        except BaseException as error:  # noqa: BLE001 whatever escapes a dispatch is for the oracle
            self.error = error
        self.done = True
        self._back.release()

    def stop_at(self, place: str) -> None:
        """Give the turn away; only in the dispatcher's own thread. Raises Killed when it is not to go on."""
        if self.killed:
            raise Killed(place)
        self.at = place
        self._back.release()
        self._go.acquire()
        if self.killed:
            raise Killed(place)

    def advance(self) -> None:
        """Let it go on to its next stop or its end."""
        if self.done:
            return
        self._go.release()
        assert self._back.acquire(timeout=_PATIENCE_SECONDS), f"the dispatcher hangs after {self.at}"
        if self.done:
            self._thread.join()

    def finish(self) -> None:
        """Let it go on to its end."""
        while not self.done:
            self.advance()

    def kill(self) -> None:
        """End it where it stands."""
        self.killed = True
        self.finish()


class StoppingControl:
    """A control plane that stops its dispatcher before each write, and after an intent, when the call is on its way."""

    def __init__(self, inner: ControlPlane, puppet: Puppet, witness: Witness) -> None:
        self._inner = inner
        self._puppet = puppet
        self._witness = witness
        #: The generation of each row that this dispatcher took, as far as it knows.
        self.generations: dict[int, int] = {}

    def backlog(self) -> Backlog:
        """As it is."""
        return self._inner.backlog()

    def waiting(self, limit: int) -> list[RawRow]:
        """Stops before."""
        self._puppet.stop_at("before waiting")
        return self._inner.waiting(limit)

    def claim(self, jobs: Sequence[WaitingJob]) -> list[Entry]:
        """Stops before."""
        self._puppet.stop_at("before claim")
        entries = self._inner.claim(jobs)
        self._witness.claimed(entries)
        return self._took(entries)

    def refuse(self, rows: Sequence[RefusedRow]) -> None:
        """Stops before."""
        self._puppet.stop_at("before refuse")
        self._inner.refuse(rows)

    def take_over(self, limit: int) -> list[Entry]:
        """Stops before."""
        self._puppet.stop_at("before take over")
        return self._inherit(self._inner.take_over(limit))

    def resume(self, entry_ids: Collection[int]) -> list[Entry]:
        """Stops before."""
        self._puppet.stop_at("before resume")
        return self._inherit(self._inner.resume(entry_ids))

    def intend(self, intents: Sequence[Intent]) -> set[int]:
        """Stops before and after."""
        self._witness.asked(self._puppet.clock.now - self._puppet.began)
        self._puppet.stop_at("before intend")
        granted = self._inner.intend(intents)
        for intent in intents:
            if intent.entry.entry_id in granted:
                starts = intent.fresh_run or intent.entry.starts_new_run
                self._witness.granted(intent.entry, Call.RUN_NOW if starts else Call.REPAIR)
        self._puppet.stop_at("after intend")
        return granted

    def record(self, changes: Sequence[Change]) -> None:
        """Stops before."""
        self._puppet.stop_at("before record")
        self._inner.record(changes)

    def close(self, entry_ids: Collection[int]) -> list[Closed]:
        """Stops before."""
        self._puppet.stop_at("before close")
        return self._inner.close(entry_ids)

    def heartbeat(self) -> None:
        """As it is, without a stop."""
        if self._puppet.killed:
            raise Killed("heartbeat")
        self._inner.heartbeat()

    def end(self) -> None:
        """Stops before."""
        self._puppet.stop_at("before end")
        self._inner.end()

    def _inherit(self, entries: list[Entry]) -> list[Entry]:
        self._witness.inherited(entries)
        return self._took(entries)

    def _took(self, entries: list[Entry]) -> list[Entry]:
        self.generations.update({entry.run_id: entry.generation for entry in entries})
        return entries


class WatchedRuns:
    """The Jobs API as one dispatcher uses it, each call a second long and told to the witness."""

    def __init__(self, inner: DatabricksRuns, puppet: Puppet, control: StoppingControl, witness: Witness) -> None:
        self._inner = inner
        self._puppet = puppet
        self._control = control
        self._witness = witness

    def start(self, job_id: int, parameters: Mapping[str, str], idempotency_token: str) -> int:
        """run-now."""
        return self._effective(
            Call.RUN_NOW, parameters, lambda: self._inner.start(job_id, parameters, idempotency_token)
        )

    def look_up(self, run_id: int) -> RunSnapshot:
        """runs/get."""
        self._witness.asked(self._puppet.clock.now - self._puppet.began)
        self._puppet.clock.now += 1.0
        return self._inner.look_up(run_id)

    def repair(self, run_id: int, parameters: Mapping[str, str], latest_repair_id: int | None) -> int:
        """runs/repair."""
        return self._effective(
            Call.REPAIR, parameters, lambda: self._inner.repair(run_id, parameters, latest_repair_id)
        )

    def find_started(self, job_id: int, since: datetime, parameters: Mapping[str, str]) -> int | None:
        """runs/list."""
        self._puppet.clock.now += 1.0
        return self._inner.find_started(job_id, since, parameters)

    def page_url(self, job_id: int, run_id: int) -> str:
        """As it is."""
        return self._inner.page_url(job_id, run_id)

    def scrub(self, text: str) -> str:
        """As it is."""
        return self._inner.scrub(text)

    def _effective(self, kind: Call, parameters: Mapping[str, str], call: Callable[[], int]) -> int:
        self._puppet.clock.now += 1.0
        self._witness.before_call()
        row = int(parameters["RUN_ID"])
        lost = False
        try:
            return call()
        except WorkspaceUnavailable as error:
            lost = error.maybe_applied
            raise
        finally:
            self._witness.after_call(row, self._control.generations.get(row, 0), kind, lost=lost)
