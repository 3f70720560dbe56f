"""The state machine: what its environment may do at any time, and the dispatchers, one step after the other.

The environment's steps are in ``environment_rules``, how they are carried out in ``harness``, what must hold in
``oracle``.
"""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from pm_dagster.dispatch.model import Call
from pm_dagster.dispatch.sender import Sender
from pm_dagster.dispatch.service import Dispatch
from pm_dagster.dispatch.waiting_job import RawRow
from pm_dagster.dispatch.worker import Sent
from pm_dagster.errors import ProcessManagerError
from pm_dagster_tests.model.environment_rules import KIND, LONG, NUMBER, EnvironmentRules
from pm_dagster_tests.model.harness import JOBS, Harness
from pm_dagster_tests.model.stepped_dispatcher import Killed, SteppedDispatcher, Stop
from pm_dagster_tests.model.stepping_ports import SteppingControl, WatchedRuns

_MOST_DISPATCHERS = 3
_SETTLING_PASSES = 14
#: Five stops are just before a new run is sent, six just before its answer is recorded.
STOPS = st.sampled_from([1, 2, 3, 4, 5, 5, 6, 6, 6, 7, 8, 9, 10, 12, 14])


class DispatchMachine(EnvironmentRules):
    """See the module. Each example ends by letting everything settle."""

    def __init__(self, harness: Harness) -> None:
        super().__init__(harness)
        self.dispatchers: list[SteppedDispatcher] = []

    # ---- the dispatchers

    @precondition(lambda self: self._room())
    @rule(as_ops=st.booleans(), frame=st.booleans(), stops=STOPS, trouble=st.none() | st.tuples(KIND, st.booleans()))
    def begin_dispatch(
        self,
        *,
        as_ops: bool,
        frame: bool,
        stops: int,
        trouble: tuple[str, bool] | None,
    ) -> None:
        """A dispatch begins; ``as_ops`` in the stretches that Dagster gives it, ``frame`` over rows read earlier."""
        rows = self.read if frame and self.read else None
        if trouble:
            for call in (Call.RUN_NOW, Call.REPAIR):
                self.harness.arm(call, trouble[0], after=trouble[1], good=0)
        self.dispatchers.append(self._dispatcher(as_ops=as_ops, rows=rows))
        self._advance(self.dispatchers[-1], stops)

    @rule()
    def read_rows(self) -> None:
        """Somebody reads the rows, to dispatch them later."""
        self.read = self.harness.control(self.settings).waiting(100)

    @precondition(lambda self: self._room())
    @rule(as_ops=st.booleans())
    def dispatch(self, *, as_ops: bool) -> None:
        """A dispatch from beginning to end."""
        self.dispatchers.append(self._dispatcher(as_ops=as_ops))
        self._finish(self.dispatchers[-1])

    @precondition(lambda self: self._living())
    @rule(number=NUMBER, stops=STOPS)
    def advance(self, number: int, stops: int) -> None:
        """A dispatcher does its next steps."""
        for dispatcher in self._chosen(self._living(), number):
            self._advance(dispatcher, stops)

    @precondition(lambda self: self._living())
    @rule(number=NUMBER)
    def finish_dispatch(self, number: int) -> None:
        """A dispatcher goes on to its end."""
        for dispatcher in self._chosen(self._living(), number):
            self._finish(dispatcher)

    @precondition(lambda self: self._living())
    @rule(number=NUMBER)
    def kill(self, number: int) -> None:
        """A dispatcher dies where it stands."""
        for dispatcher in self._chosen(self._living(), number):
            dispatcher.kill()
            if dispatcher.control is not None:
                self.harness.die(dispatcher.control)
            self._after(dispatcher)

    @precondition(lambda self: self._living())
    @rule(number=NUMBER, stops=STOPS)
    def lose(self, number: int, stops: int) -> None:
        """A dispatcher is taken for dead while it only sleeps; another one rescues its entries."""
        for dispatcher in self._chosen(self._living(), number):
            if dispatcher.control is not None:
                self.harness.lose(dispatcher.control)
        if self._room():
            self.dispatchers.append(self._dispatcher(as_ops=False))
            self._advance(self.dispatchers[-1], stops)

    def teardown(self) -> None:
        """Faults end, time passes, a few dispatches run: then nothing waits, and nothing is unresolved."""
        try:
            self.oracle.raise_breaches()
            self._settle()
        finally:
            for dispatcher in self._living():
                dispatcher.kill()
            self.harness.leave()

    # ---- inside

    def _settle(self) -> None:
        self.harness.calm()
        # A workspace that knows none of the rows' jobs is refused as a whole, and blames no row for as long.
        self.harness.set_job_exists(JOBS[0], exists=True)
        for dispatcher in self._living():
            self._finish(dispatcher)
        for number in range(_SETTLING_PASSES):
            self.harness.pass_time(LONG)
            if number == _SETTLING_PASSES // 2:
                # A row may have to wait for the end of a run that is under way for another, or for what it was before.
                self._end_runs()
            dispatcher = self._dispatcher(as_ops=False)
            self.dispatchers.append(dispatcher)
            self._finish(dispatcher)
            if self.oracle.settled():
                break
        self.oracle.check_settled()
        self.oracle.check_secrets()

    def _end_runs(self) -> None:
        for run_id, run in self.harness.runs().items():
            if run.active:
                self.harness.finish(run_id, "succeed")

    def _after(self, dispatcher: SteppedDispatcher) -> None:
        identity = None if dispatcher.control is None else self.harness.identity(dispatcher.control)
        self.oracle.observe(dispatcher=True, identity=identity or dispatcher.identity)
        dispatcher.identity = identity or dispatcher.identity
        if dispatcher.error is not None and not isinstance(dispatcher.error, (Killed, ProcessManagerError)):
            self.oracle.check_error(dispatcher.error)
            self.oracle.raise_breaches()

    def _advance(self, dispatcher: SteppedDispatcher, stops: int) -> None:
        for _ in range(stops):
            dispatcher.advance()
            self._after(dispatcher)

    def _finish(self, dispatcher: SteppedDispatcher) -> None:
        while not dispatcher.done:
            dispatcher.advance()
            self._after(dispatcher)

    def _living(self) -> list[SteppedDispatcher]:
        return [dispatcher for dispatcher in self.dispatchers if not dispatcher.done]

    def _room(self) -> bool:
        return len(self._living()) < _MOST_DISPATCHERS

    def _dispatcher(self, *, as_ops: bool, rows: Sequence[RawRow] | None = None) -> SteppedDispatcher:
        settings = self.settings

        def program(dispatcher: SteppedDispatcher) -> None:
            inner = self.harness.control(settings)
            dispatcher.control, dispatcher.began = inner, self.clock.now
            control = SteppingControl(inner, dispatcher, self.oracle)
            runs = WatchedRuns(self.harness.jobs_api(), dispatcher, control, self.oracle)
            dispatch = Dispatch(control, runs, settings, stop=Stop(self.clock), clock=self.clock)
            try:
                (_in_ops if as_ops else Dispatch.run)(dispatch, rows=rows)
            finally:
                control.end()

        return SteppedDispatcher(program, self.clock)


def _in_ops(dispatch: Dispatch, rows: Sequence[RawRow] | None = None) -> None:
    """The ops of ``pm_dagster.orchestration``: both branches at once, or alone over rows read earlier."""
    claimed = dispatch.claim(dispatch.read() if rows is None else rows)
    sender = Sender(dispatch)
    if rows is None:
        sender.begin()
    try:
        started = sender.start([entry.entry_id for entry in claimed.new])
        looked_up = sender.look_up([entry.entry_id for entry in claimed.repair])
        repaired = sender.repair(looked_up.targets)
        sender.rest()
    finally:
        sender.end()
    dispatch.close(claimed.entries, Sent.of([started.sent, looked_up.sent, repaired.sent]))
