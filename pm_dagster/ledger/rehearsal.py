"""Does the control table take the closing of a row? Tried before anything is started, and undone at once.

Put here: what is tried, and with what. Keep out: the write itself (``closing``), and what becomes of a refused row.

The catalog tells what a column can hold. What a trigger, a rule, a constraint, a foreign key, a policy or a view with a
computed status make of a write only the write itself tells. It is undone with all that the owner's triggers did in the
database; they have to bear that anyway, as any transaction may fail. PM_REHEARSE=off spares a table whose triggers
reach outside of it.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from contextlib import closing
from typing import Any

from psycopg2.extensions import connection as Connection  # noqa: N812 the driver's class has a lower-case name
from psycopg2.extensions import cursor as Cursor  # noqa: N812

from pm_dagster.config.settings import Settings
from pm_dagster.ledger.closing import Closing, TooSlow
from pm_dagster.ledger.columns import statuses_refused
from pm_dagster.ledger.control_statements import Statements
from pm_dagster.ledger.layout import read_layout

#: So long may all rows together take; where they do not fit, one of them stands for all.
_LONGEST_SECONDS = 2.0
#: As long as they get in practice: 16 digits, the link of a workspace in Azure, and a message of a line.
_RUN = 9_000_000_000_000_000
_URL = "https://adb-1234567890123456.10.azuredatabricks.net/jobs/123456789012345/runs/{}?o=1234567890123456"
_MESSAGE = "run {} was started"


def refused_rows(
    cursor: Cursor, owners: Statements, settings: Settings, names: Mapping[str, Any], runs: Mapping[int, int | None]
) -> dict[int, str]:
    """Why the control table would not take SCHEDULED, by the ids of the rows whose closing it refuses.

    ``runs`` has the rows, locked by this transaction, with the run that each of them names. Raises TooSlow when they
    take too long together: then nothing of the transaction may be kept, and ``refused_sample`` is to be asked.
    """
    closing = Closing(cursor, owners, settings, names)
    return closing.rehearse(_writes(settings.status_scheduled, runs), _LONGEST_SECONDS)


def refused_sample(
    cursor: Cursor, owners: Statements, settings: Settings, names: Mapping[str, Any], runs: Mapping[int, int | None]
) -> dict[int, str]:
    """The same for a slow table: one row has all the time that a row may take, and what it says goes for all."""
    # Another one each time, so that a single slow row does not keep back the others for ever.
    row = random.choice(list(runs))  # noqa: S311 no secret
    closing = Closing(cursor, owners, settings, names)
    failed = closing.rehearse(_writes(settings.status_scheduled, {row: runs[row]}), settings.row_seconds, alone=True)
    if not failed:
        return {}
    return {each: failed[row] if each == row else f"tried with row {row}: {failed[row]}" for each in runs}


def finding(connection: Connection, settings: Settings, run_ids: list[int]) -> tuple[bool, str]:
    """Whether these waiting rows could be closed, with each status, and in what words `pm doctor` says so.

    The transaction is rolled back.
    """
    layout = read_layout(connection, settings)
    wrong = statuses_refused(settings, layout.table[settings.column_status])
    owners = Statements(settings, layout)
    names = {"me": 0, "waiting": settings.status_waiting, "control_table": settings.control_table}
    tried: list[int] = []
    with closing(connection.cursor()) as cursor:
        cursor.execute(owners.lock_waiting, {**names, "run_ids": run_ids})
        tried = [run_id for (run_id,) in cursor.fetchall()]
        for variable, status in () if wrong else _statuses(settings):
            failed = _failed(connection, cursor, owners, settings, names, tried, status)
            if failed:
                row, why = next(iter(failed.items()))
                wrong.append(
                    f"{len(failed)} of {len(tried)} rows cannot be set to {status} ({variable}); row {row}: {why}"
                )
    connection.rollback()
    if wrong:
        return False, "; ".join(wrong)
    if not tried:
        return True, f"no row waits to try it with; the columns of {settings.control_table} hold what is written"
    return True, f"{settings.control_table} takes all that is written, as tried with {len(tried)} rows and undone"


def _statuses(settings: Settings) -> list[tuple[str, str]]:
    return [
        ("PM_STATUS_SCHEDULED", settings.status_scheduled),
        ("PM_STATUS_FAILED", settings.status_failed),
        ("PM_STATUS_SUCCEEDED", settings.status_succeeded),
    ]


def _failed(
    connection: Connection,
    cursor: Cursor,
    owners: Statements,
    settings: Settings,
    names: Mapping[str, Any],
    run_ids: list[int],
    status: str,
) -> dict[int, str]:
    runs = dict.fromkeys(run_ids, None)
    try:
        return Closing(cursor, owners, settings, names).rehearse(_writes(status, runs), _LONGEST_SECONDS)
    except TooSlow:
        connection.rollback()
        one = _writes(status, dict(list(runs.items())[:1]))
        return Closing(cursor, owners, settings, names).rehearse(one, settings.row_seconds, alone=True)


def _writes(status: str, runs: Mapping[int, int | None]) -> list[dict[str, Any]]:
    found = []
    for number, (row, named) in enumerate(runs.items()):
        # Another for each row, for the owner may demand that no two name the same.
        run = named or _RUN + number
        message = _MESSAGE.format(run)
        found.append({"run_id": row, "status": status, "run": run, "url": _URL.format(run), "message": message})
    return found
