"""The state machine: everybody who may do something at any time, and the dispatchers, one step after the other.

Put here: the dispatchers' steps, and the end of an example. Keep out: the others' steps (``everybody``), how a world
carries steps out (``worlds``) and what must hold (``oracle``).
"""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from pm_dagster.dispatch.model import Call
from pm_dagster.dispatch.service import Dispatch
from pm_dagster.dispatch.waiting_job import RawRow
from pm_dagster.dispatch.worker import Sent
from pm_dagster.errors import ProcessManagerError
from pm_dagster_tests.model.everybody import KIND, LONG, NUMBER, Everybody
from pm_dagster_tests.model.puppet import Killed, Puppet, Stop
from pm_dagster_tests.model.stopping import StoppingControl, WatchedRuns
from pm_dagster_tests.model.worlds import ModelWorld

_MOST_DISPATCHERS = 3
_SETTLING_PASSES = 14
#: Five stops are just before a new run is sent, six just before its answer is recorded.
STOPS = st.sampled_from([1, 2, 3, 4, 5, 5, 6, 6, 6, 7, 8, 9, 10, 12, 14])


class DispatchMachine(Everybody):
    """See the module. Each example ends by letting everything settle."""

    def __init__(self, world: ModelWorld) -> None:
        super().__init__(world)
        self.puppets: list[Puppet] = []

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
                self.world.arm(call, trouble[0], after=trouble[1], good=0)
        self.puppets.append(self._dispatcher(as_ops=as_ops, rows=rows))
        self._advance(self.puppets[-1], stops)

    @rule()
    def read_rows(self) -> None:
        """Somebody reads the rows, to dispatch them later."""
        self.read = self.world.control(self.settings).waiting(100)

    @precondition(lambda self: self._room())
    @rule(as_ops=st.booleans())
    def dispatch(self, *, as_ops: bool) -> None:
        """A dispatch from beginning to end."""
        self.puppets.append(self._dispatcher(as_ops=as_ops))
        self._finish(self.puppets[-1])

    @precondition(lambda self: self._living())
    @rule(number=NUMBER, stops=STOPS)
    def advance(self, number: int, stops: int) -> None:
        """A dispatcher does its next steps."""
        for puppet in self._chosen(self._living(), number):
            self._advance(puppet, stops)

    @precondition(lambda self: self._living())
    @rule(number=NUMBER)
    def finish_dispatch(self, number: int) -> None:
        """A dispatcher goes on to its end."""
        for puppet in self._chosen(self._living(), number):
            self._finish(puppet)

    @precondition(lambda self: self._living())
    @rule(number=NUMBER)
    def kill(self, number: int) -> None:
        """A dispatcher dies where it stands."""
        for puppet in self._chosen(self._living(), number):
            puppet.kill()
            if puppet.control is not None:
                self.world.die(puppet.control)
            self._after(puppet)

    @precondition(lambda self: self._living())
    @rule(number=NUMBER, stops=STOPS)
    def lose(self, number: int, stops: int) -> None:
        """A dispatcher is taken for dead while it only sleeps; another one takes over."""
        for puppet in self._chosen(self._living(), number):
            if puppet.control is not None:
                self.world.lose(puppet.control)
        if self._room():
            self.puppets.append(self._dispatcher(as_ops=False))
            self._advance(self.puppets[-1], stops)

    def teardown(self) -> None:
        """Faults end, time passes, a few dispatches run: then nothing waits, and nothing is unresolved."""
        try:
            self.oracle.raise_breaches()
            self._settle()
        finally:
            for puppet in self._living():
                puppet.kill()
            self.world.leave()

    # ---- inside

    def _settle(self) -> None:
        self.world.calm()
        for puppet in self._living():
            self._finish(puppet)
        for number in range(_SETTLING_PASSES):
            self.world.pass_time(LONG)
            if number == _SETTLING_PASSES // 2:
                # A row may have to wait for the end of a run that is under way for another, or for what it was before.
                self._end_runs()
            puppet = self._dispatcher(as_ops=False)
            self.puppets.append(puppet)
            self._finish(puppet)
            if self.oracle.settled():
                break
        self.oracle.check_settled()
        self.oracle.check_secrets()

    def _end_runs(self) -> None:
        for run_id, run in self.world.runs().items():
            if run.active:
                self.world.finish(run_id, "succeed")

    def _after(self, puppet: Puppet) -> None:
        identity = None if puppet.control is None else self.world.identity(puppet.control)
        self.oracle.observe(dispatcher=True, identity=identity or puppet.identity)
        puppet.identity = identity or puppet.identity
        if puppet.error is not None and not isinstance(puppet.error, (Killed, ProcessManagerError)):
            self.oracle.check_error(puppet.error)
            self.oracle.raise_breaches()

    def _advance(self, puppet: Puppet, stops: int) -> None:
        for _ in range(stops):
            puppet.advance()
            self._after(puppet)

    def _finish(self, puppet: Puppet) -> None:
        while not puppet.done:
            puppet.advance()
            self._after(puppet)

    def _living(self) -> list[Puppet]:
        return [puppet for puppet in self.puppets if not puppet.done]

    def _room(self) -> bool:
        return len(self._living()) < _MOST_DISPATCHERS

    def _dispatcher(self, *, as_ops: bool, rows: Sequence[RawRow] | None = None) -> Puppet:
        settings = self.settings

        def program(puppet: Puppet) -> None:
            inner = self.world.control(settings)
            puppet.control, puppet.began = inner, self.clock.now
            control = StoppingControl(inner, puppet, self.oracle)
            runs = WatchedRuns(self.world.jobs_api(), puppet, control, self.oracle)
            dispatch = Dispatch(control, runs, settings, stop=Stop(self.clock), clock=self.clock)
            try:
                (_in_ops if as_ops else Dispatch.run)(dispatch, rows=rows)
            finally:
                control.end()

        return Puppet(program, self.clock)


def _in_ops(dispatch: Dispatch, rows: Sequence[RawRow] | None = None) -> None:
    """The stretches of ``pm_dagster.orchestration``, each of which may be the only one that goes through."""
    claimed = dispatch.claim(dispatch.read() if rows is None else rows)
    started = dispatch.send(claimed.new)
    dispatch.close_early()
    targets, settled = dispatch.look_up_repairs(claimed.repair)
    dispatch.close_early()
    repaired = dispatch.repair(targets)
    dispatch.close_early()
    dispatch.close(claimed.entries, Sent.of([started, settled, repaired]))
