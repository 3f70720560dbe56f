"""Rows without columns are rows: what waits for them to be gone must see them."""

from __future__ import annotations

from pm_dagster_tests.ledger.world import PostgresWorld


def test_rows_without_columns_count(world: PostgresWorld) -> None:
    world.add()
    world.add()
    assert len(world.ask("SELECT FROM mm_run_plc")) == 2
    assert world.ask("SELECT FROM mm_run_plc WHERE false") == []
    assert world.ask("UPDATE mm_run_plc SET cntrt_id = 8") == []
