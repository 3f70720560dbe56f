"""Running the machine: how many examples, how long, and with which chance.

The settings of hypothesis, in one place; the steps are in ``machine``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from pm_dagster_tests.model.harness import Harness
from pm_dagster_tests.model.machine import DispatchMachine


@dataclass
class Search:
    """Examples in harnesses that ``make`` makes; afterwards, how many there were and how many steps they took."""

    make: Callable[[], Harness]
    examples: int = 0
    steps: int = 0

    def run(self, most: int, *, number: int | None = None, shrink: bool = True) -> None:
        """Look for steps after which an invariant does not hold; raises Breach, with the steps printed.

        The examples are always the same, for each ``number`` others.
        """
        machine = self._machine()
        if number is not None:
            seed(number)(machine)
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=most,
                stateful_step_count=50,
                derandomize=number is None,
                database=None,
                deadline=None,
                phases=[Phase.generate, Phase.shrink] if shrink else [Phase.generate],
                report_multiple_bugs=False,
                suppress_health_check=list(HealthCheck),
            ),
        )

    def _machine(self) -> type[DispatchMachine]:
        search = self

        class Counted(DispatchMachine):
            def __init__(self) -> None:
                super().__init__(search.make())

            def teardown(self) -> None:
                search.examples += 1
                try:
                    super().teardown()
                finally:
                    search.steps += self.oracle.steps

        return Counted
