"""The fault matrix: its short form in every run of the tests, the whole of it under the marker `chaos`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager

import pytest

from pm_dagster_tests.chaos.cell import Result, run_cell
from pm_dagster_tests.chaos.deployment import ChaosDeployment
from pm_dagster_tests.chaos.faults import FAULTS, Fault
from pm_dagster_tests.chaos.matrix import TABLE, VARIANTS, Cell, covering, telling, varied
from pm_dagster_tests.chaos.records import REQUESTS, record

Deployments = Callable[[], AbstractContextManager[ChaosDeployment]]


def _run(cells: Iterable[Cell], deployments: Deployments) -> None:
    bad = []
    for cell in cells:
        with deployments() as deployment:
            result = run_cell(deployment, cell)
        _keep(result)
        bad += [] if result.good else [str(result)]
    assert not bad, "\n\n".join(bad)


def _keep(result: Result) -> None:
    counts = {**result.verdict.counts, "rows": result.verdict.rows, "starts": result.verdict.starts}
    figures = {REQUESTS: result.requests, "dispatches": result.dispatches}
    record("variants" if result.cell.variant else "matrix", result.cell.name, counts, figures)


@pytest.mark.parametrize("cell", covering() + telling(), ids=lambda cell: cell.name)
def test_covering_cells(cell: Cell, deployments: Deployments) -> None:
    _run([cell], deployments)


@pytest.mark.chaos
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_every_cell(fault: Fault, deployments: Deployments) -> None:
    _run(TABLE.of(fault), deployments)


@pytest.mark.chaos
@pytest.mark.parametrize("variant", VARIANTS)
def test_variants(variant: str, deployments: Deployments) -> None:
    _run([cell for cell in varied() if cell.variant == variant], deployments)


def test_the_covering_cells_meet_everything() -> None:
    cells = covering()
    assert {cell.fault for cell in cells} == set(FAULTS)
    whole = {(cell.call, cell.boundary) for fault in FAULTS for cell in TABLE.of(fault)}
    assert {(cell.call, cell.boundary) for cell in cells} == whole
