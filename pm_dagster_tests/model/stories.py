"""Short ways through the machine, each of which leads past one rule of the database's side of a dispatch.

A story says nothing of how it ends: ``variants`` takes a rule out, and ``oracle`` says what must hold.
"""

from __future__ import annotations

from collections.abc import Callable

from pm_dagster.dispatch.model import Call
from pm_dagster_tests.model.harness import JOBS
from pm_dagster_tests.model.machine import DispatchMachine

Story = Callable[[DispatchMachine], None]
#: More than any dispatch of a row or two has.
_MOST_STOPS = 40


def told(story: Story, machine: DispatchMachine) -> None:
    """Tell a story to its end, where everything settles. Raises Breach when an invariant does not hold."""
    try:
        story(machine)
    finally:
        machine.teardown()


def a_death_after_a_repair_that_failed_since(machine: DispatchMachine) -> None:
    """Our repair was made and its answer is not recorded; it is over by the time that the next dispatch looks."""
    machine.add_repair("fail", 1)
    _begin_until(machine, lambda: bool(machine._active()))
    machine.kill(0)
    machine.finish_run(0, "fail")
    machine.dispatch(as_ops=False)


def a_death_between_claim_and_call(machine: DispatchMachine) -> None:
    """What was only claimed is claimed again."""
    machine.add_new(JOBS[0])
    _begin_until(machine, lambda: _at(machine, "before intend"))
    machine.kill(0)
    machine.dispatch(as_ops=False)


def a_row_that_is_asked_for_afresh(machine: DispatchMachine) -> None:
    """Its first run failed, and the owner wants a new one."""
    machine.add_new(JOBS[0])
    machine.dispatch(as_ops=False)
    machine.finish_run(0, "fail")
    machine.set_status(number=0, status="FAILED", keep=True)
    machine.set_status(number=0, status="WAITING", keep=False)
    machine.dispatch(as_ops=False)


def a_dispatcher_that_was_only_thought_dead(machine: DispatchMachine) -> None:
    """Its work is rescued while its call is under way; then it hears the answer."""
    machine.add_new(JOBS[0])
    _begin_until(machine, lambda: bool(machine._active()))
    first = machine.dispatchers[0]
    machine.lose(0, 1)
    owner = machine.harness.ledger()[0].owner
    _until(machine, 1, lambda: machine.harness.ledger()[0].owner != owner)
    while not first.done and machine.harness.ledger()[0].open:
        machine.advance(0, 1)


def a_job_that_is_corrected_after_the_reading(machine: DispatchMachine) -> None:
    """Rows that were read some time ago are dispatched."""
    machine.add_new(JOBS[0])
    machine.read_rows()
    machine.set_job(0, JOBS[1])
    machine.begin_dispatch(as_ops=False, frame=True, stops=1, trouble=None)
    machine.finish_dispatch(0)


def a_row_that_leaves_before_its_call(machine: DispatchMachine) -> None:
    """The owner takes the row back between claim and intent."""
    machine.add_new(JOBS[0])
    _begin_until(machine, lambda: _at(machine, "before intend"))
    machine.set_status(number=0, status="CANCELED", keep=True)
    machine.finish_dispatch(0)


def a_death_after_a_call(machine: DispatchMachine) -> None:
    """A run was started and its answer is not recorded."""
    machine.add_new(JOBS[0])
    _begin_until(machine, lambda: bool(machine._active()))
    machine.kill(0)


def a_row_that_leaves_during_its_call(machine: DispatchMachine) -> None:
    """The owner sets another status while the run is being started."""
    machine.add_new(JOBS[0])
    _begin_until(machine, lambda: bool(machine._active()))
    machine.set_status(number=0, status="CANCELED", keep=True)
    machine.finish_dispatch(0)


def a_refusal_that_repeats_our_token(machine: DispatchMachine) -> None:
    """The workspace says in its error with which token it was asked."""
    machine.add_new(JOBS[0])
    machine.arm(call=Call.RUN_NOW, kinds=["busy"], after=False, good=0)
    machine.dispatch(as_ops=False)


def _at(machine: DispatchMachine, place: str) -> bool:
    return machine.dispatchers[-1].at == place


def _begin_until(machine: DispatchMachine, reached: Callable[[], bool]) -> None:
    machine.begin_dispatch(as_ops=False, frame=False, stops=1, trouble=None)
    _until(machine, 0, reached)


def _until(machine: DispatchMachine, number: int, reached: Callable[[], bool]) -> None:
    for _ in range(_MOST_STOPS):
        if reached():
            return
        machine.advance(number, 1)
    raise AssertionError("the dispatcher never came to where the story wants it")


STORIES: tuple[Story, ...] = (
    a_death_after_a_repair_that_failed_since,
    a_death_between_claim_and_call,
    a_row_that_is_asked_for_afresh,
    a_dispatcher_that_was_only_thought_dead,
    a_job_that_is_corrected_after_the_reading,
    a_row_that_leaves_before_its_call,
    a_death_after_a_call,
    a_row_that_leaves_during_its_call,
    a_refusal_that_repeats_our_token,
)
