"""Run by the runtime's Python: the waiting jobs as the driver reads them and as Spark reads them.

``reads.py FOLDER`` prints one JSON object; FOLDER holds ``pm_dagster``. With ``unreachable`` or ``wrong-password`` it
lets Spark's read fail and prints the error.
"""

from __future__ import annotations

import json
import os
import sys
import time
from contextlib import redirect_stdout
from io import StringIO

sys.path.insert(0, sys.argv[1])

from pm_dagster.cluster import spark_read
from pm_dagster.config.settings import settings_from
from pm_dagster.dispatch.waiting_job import RawRow
from pm_dagster.errors import ProcessManagerError
from pm_dagster.ledger.connection_strings import jdbc_options
from pm_dagster.ledger.control_plane import PostgresControlPlane
from pm_dagster.ledger.waiting_rows import WaitingAsText


def _shown(rows: list[RawRow]) -> list[str]:
    """The rows with the types of their values: 1 is equal to 1.0 and to True, NaN not to itself."""
    return [repr({name: _plain(value) for name, value in vars(row).items()}) for row in rows]


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    return bytes(value) if isinstance(value, memoryview) else value


def _tell() -> dict[str, object]:
    """Both reads, and the plan of Spark's."""
    settings = settings_from(os.environ)
    control = PostgresControlPlane(settings, "test")
    by_driver = control.waiting(settings.dispatch_limit)
    control.end()
    began = time.monotonic()
    session = spark_read.session()
    started = time.monotonic()
    by_spark = spark_read.read_waiting(settings, settings.dispatch_limit).rows
    read = time.monotonic()
    waiting = WaitingAsText(settings)
    with redirect_stdout(StringIO()) as plan:
        spark_read.source(session, jdbc_options(settings), waiting.read(10)).explain(extended=True)
    waiting.end()
    told = {"driver": _shown(by_driver), "spark": _shown(by_spark), "plan": plan.getvalue()}
    return told | {"session_seconds": started - began, "read_seconds": read - started}


def _fail(how: str) -> None:
    """Let Spark alone come to a database that it cannot read."""
    wrong = {
        "unreachable": {"url": "jdbc:postgresql://127.0.0.1:1/db?connectTimeout=10"},
        "wrong-password": {"password": "wrong"},
    }
    settings = settings_from(os.environ)
    waiting = WaitingAsText(settings)
    try:
        options = jdbc_options(settings) | wrong[how]
        spark_read.collected(spark_read.session(), options, waiting.read(10))
    except ProcessManagerError as error:
        print(f"{type(error).__name__}: {error}")  # noqa: T201 the output
        sys.exit(1)
    finally:
        waiting.end()


if __name__ == "__main__":
    if sys.argv[2:]:
        _fail(sys.argv[2])
    else:
        print(json.dumps(_tell()))  # noqa: T201 the output
