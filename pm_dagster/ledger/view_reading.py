"""How long the owner's view may take to be read, and what to say when it does not end.

Put here: the limit of one reading, and why a reading was broken off. Keep out: what is read.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg2
from psycopg2 import errors
from psycopg2.extensions import cursor as Cursor  # noqa: N812 the driver's class has a lower-case name

from pm_dagster.config.settings import Settings
from pm_dagster.errors import ControlPlaneUnavailable
from pm_dagster.ledger.statements import LOCAL_TIMEOUTS, STATEMENT_SECONDS

_LIMIT = "SELECT set_config('statement_timeout', %(limit)s, true)"
#: The server's clock for a statement starts a little before or after ours.
_TOLERANCE_SECONDS = 0.1
#: Beyond the server's own time-out: who says nothing for so much longer hangs.
_MORE_SECONDS = 10.0


def longest_transaction(settings: Settings) -> float:
    """Seconds after which a server that has said nothing hangs: its own time-outs are over by then."""
    return max(STATEMENT_SECONDS, settings.view_timeout_seconds) + _MORE_SECONDS


@contextmanager
def reading_view(cursor: Cursor, settings: Settings) -> Iterator[None]:
    """Give what is inside PM_VIEW_TIMEOUT_SECONDS, and name the view when it is broken off.

    Inside a transaction, of which a statement has begun with ``LOCAL_TIMEOUTS``. Raises ControlPlaneUnavailable: the
    next try may find fewer rows, a faster plan, or no lock.
    """
    limit = settings.view_timeout_seconds
    if limit != STATEMENT_SECONDS:
        cursor.execute(_LIMIT, {"limit": f"{round(limit * 1000)}ms"})
    began = time.monotonic()
    try:
        yield
    except (errors.QueryCanceled, errors.LockNotAvailable) as error:
        raise _broken_off(error, settings, time.monotonic() - began) from None
    if limit != STATEMENT_SECONDS:
        cursor.execute(LOCAL_TIMEOUTS)


def _broken_off(error: psycopg2.Error, settings: Settings, seconds: float) -> ControlPlaneUnavailable:
    """The server has one code for its time-out and for a person who cancels; only the time tells them apart."""
    view = f"view {settings.schema}.{settings.wait_view} (PM_WAIT_VIEW)"
    said = next(iter(str(error).splitlines()), "").strip()
    limit = settings.view_timeout_seconds
    if isinstance(error, errors.LockNotAvailable):
        return ControlPlaneUnavailable(
            f"the {view} could not be read: another session holds a lock that we need (see pg_locks): {said}"
        )
    if seconds >= limit - _TOLERANCE_SECONDS:
        return ControlPlaneUnavailable(
            f"the {view} takes longer to read than the {limit:g} s of PM_VIEW_TIMEOUT_SECONDS: make it faster, or allow"
            f" it more: {said}"
        )
    return ControlPlaneUnavailable(
        f"the reading of the {view} was cancelled after {seconds:.1f} s, before the {limit:g} s of"
        f" PM_VIEW_TIMEOUT_SECONDS: somebody did it (pg_cancel_backend), or a pooler's time-out: {said}"
    )
