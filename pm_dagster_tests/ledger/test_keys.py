"""Whether the control table can hold two rows of one run id decides which rows are joined, and never what is found."""

from __future__ import annotations

from contextlib import closing

import psycopg2
import pytest

from pm_dagster.ledger import reads
from pm_dagster.ledger.layout import read_layout
from pm_dagster_tests.ledger.postgres_control_table import PostgresControlTable

_NO_KEY = "ALTER TABLE mm_run_plc ALTER run_id DROP IDENTITY; ALTER TABLE mm_run_plc DROP CONSTRAINT mm_run_plc_pkey"
_ENTRY = """
INSERT INTO process_manager.entry (control_table, run_id, generation, branch, state, open, closed_at, updated_at)
VALUES ('public.mm_run_plc', %s, %s, 'new', %s, %s, CASE WHEN %s THEN NULL ELSE now() END,
        now() + %s * interval '1 second')"""


def _one_row_per_id(table: PostgresControlTable) -> bool:
    with closing(psycopg2.connect(table.url)) as connection:
        return read_layout(connection, table.settings).one_row_per_id


@pytest.mark.parametrize(
    ("statements", "one"),
    [
        ("SELECT", True),
        (f"{_NO_KEY}", False),
        (f"{_NO_KEY}; CREATE UNIQUE INDEX ON mm_run_plc (run_id)", True),
        (f"{_NO_KEY}; CREATE UNIQUE INDEX ON mm_run_plc (run_id) INCLUDE (cntrt_id)", True),
        (f"{_NO_KEY}; CREATE INDEX ON mm_run_plc (run_id)", False),
        (f"{_NO_KEY}; CREATE UNIQUE INDEX ON mm_run_plc (run_id, cntrt_id)", False),
        (f"{_NO_KEY}; CREATE UNIQUE INDEX ON mm_run_plc (run_id) WHERE run_sttus_name = 'WAITING'", False),
        (f"{_NO_KEY}; CREATE UNIQUE INDEX ON mm_run_plc (abs(run_id))", False),
        (f"{_NO_KEY}; ALTER TABLE mm_run_plc ADD UNIQUE (run_id) DEFERRABLE", False),
        ("CREATE TABLE more () INHERITS (mm_run_plc)", False),
        ("ALTER TABLE mm_run_plc RENAME TO under; CREATE VIEW mm_run_plc AS SELECT * FROM under", False),
    ],
)
def test_what_counts_as_a_key(table: PostgresControlTable, statements: str, *, one: bool) -> None:
    table.ask(statements)
    assert _one_row_per_id(table) is one


def _found(table: PostgresControlTable) -> tuple[object, ...]:
    control = table.dispatcher()
    backlog = control.backlog()
    first = [(row.run_id, row.since, row.in_control_table) for row in control.waiting(100)]
    following = [row.run_id for row in control.waiting(100, [int(str(first[0][0]))])]
    stuck = [(row.run_id, row.reason) for row in control.untakeable(100)]
    table.leave()
    counts = (backlog.ready, backlog.untakeable, backlog.in_hand, backlog.backing_off, backlog.locked)
    return (counts, round(backlog.oldest_seconds or 0, -1), first, following, stuck)


def test_with_a_key_and_without_the_same_is_found(table: PostgresControlTable) -> None:
    """Rows that only the view takes for waiting, and one that waits for its next try, are among them."""
    old, new, held, other = (table.add(age=age) for age in (500.0, 20.0, 300.0, 100.0))
    loose = table.add(status="waiting", age=900.0)
    table.add(status="SUCCEEDED", age=1000.0)
    table.loosen_view()
    table.ask(
        "INSERT INTO process_manager.entry (control_table, run_id, generation, branch, state, not_before)"
        " VALUES ('public.mm_run_plc', %s, 1, 'new', 'DEFERRED', now() + interval '1 hour')",
        held,
    )
    assert _one_row_per_id(table)
    keyed = _found(table)
    table.ask(_NO_KEY)
    assert not _one_row_per_id(table)
    assert _found(table) == keyed
    counts, _, first, following, stuck = keyed
    assert counts == (3, 1, 0, 1, 0)
    assert [row[0] for row in first] == [old, other, new]  # type: ignore[attr-defined]
    assert following == [other, new]
    assert [row[0] for row in stuck] == [loose]  # type: ignore[attr-defined]


def test_without_a_key_all_rows_of_an_id_count(table: PostgresControlTable) -> None:
    run_id = table.add()
    table.ask(_NO_KEY)
    table.ask("INSERT INTO mm_run_plc (run_id, wkf_job_id, run_sttus_name) VALUES (%s, 1001, 'SUCCEEDED')", run_id)
    assert [row.run_id for row in table.dispatcher().waiting(10)] == [run_id] * 2


@pytest.mark.parametrize("keyed", [True, False])
def test_the_last_refused_rows(table: PostgresControlTable, *, keyed: bool) -> None:
    """A row is among them while its newest entry is a refusal, and nobody has put it back."""
    if not keyed:
        table.ask(_NO_KEY)
    stands, again, put_back, open_yet, gone = 11, 12, 13, 14, 15
    for run_id, status in ((stands, "FAILED"), (again, "FAILED"), (put_back, "WAITING"), (open_yet, "WAITING")):
        table.ask("INSERT INTO mm_run_plc (run_id, run_sttus_name) VALUES (%s, %s)", run_id, status)
    if not keyed:
        table.ask("INSERT INTO mm_run_plc (run_id, run_sttus_name) VALUES (%s, 'FAILED')", stands)
    for place, (run_id, generation, state, is_open) in enumerate(
        [
            (stands, 1, "SCHEDULED", False),
            (stands, 2, "QUARANTINED", False),
            (again, 1, "QUARANTINED", False),
            (again, 2, "SCHEDULED", False),
            (put_back, 1, "QUARANTINED", False),
            (open_yet, 1, "QUARANTINED", True),
            (gone, 1, "QUARANTINED", False),
        ]
    ):
        table.ask(_ENTRY, run_id, generation, state, is_open, is_open, place)
    with closing(psycopg2.connect(table.url)) as connection:
        found = reads.quarantined(connection, table.settings)
        assert [row["run_id"] for row in reads.quarantined(connection, table.settings, 1)] == [open_yet]
        states = {
            (row["state"], row["open"]): row["entries"] for row in reads.ledger_states(connection, table.settings)
        }
    assert [(row["run_id"], row["generation"], row["control_status"]) for row in found] == [
        (open_yet, 1, "WAITING"),
        (stands, 2, "FAILED"),
    ]
    assert states == {("QUARANTINED", True): 1, ("QUARANTINED", False): 4, ("SCHEDULED", False): 2}
