"""Rows without columns are rows: what waits for them to be gone must see them."""

from __future__ import annotations

from pm_dagster_tests.ledger.postgres_control_table import PostgresControlTable


def test_rows_without_columns_count(table: PostgresControlTable) -> None:
    table.add()
    table.add()
    assert len(table.ask("SELECT FROM mm_run_plc")) == 2
    assert table.ask("SELECT FROM mm_run_plc WHERE false") == []
    assert table.ask("UPDATE mm_run_plc SET cntrt_id = 8") == []
