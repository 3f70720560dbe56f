"""What a tick and a dispatch read must not grow with what is finished."""

from __future__ import annotations

import pytest

from pm_dagster.config.settings import Settings
from pm_dagster_tests.bench.big_database import Size, fill, measured

_WAITING = 1000
_SIZE = Size(history=20_000, waiting=_WAITING, dispatchers=10)


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("backlog", {}),
        ("waiting", {"limit": 100}),
        ("next", {"limit": 100, "seen": []}),
    ],
)
def test_rows_are_not_looked_up_one_by_one(ledger_url: str, name: str, names: dict[str, object]) -> None:
    """A look-up of each row in the table or in the ledger would read more blocks than there are rows."""
    fill(ledger_url, _SIZE)
    with measured(Settings(postgres_url=ledger_url)) as found:
        assert 0 < found.blocks(name, **names) < _WAITING / 2
