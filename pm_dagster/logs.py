"""What happens is logged: standard ``logging``, an event name and fields.

Every module logs as ``logging.getLogger(__name__)``. The message is the event's name, fixed and in plain words; what
belongs to it is passed as fields: ``_log.info("circuit breaker opened", extra=fields(call="run-now", pause=2.0))``.
How lines look, and where they go, is for the entries: ``pm``, the cluster's program and Dagster.
"""

from __future__ import annotations


def fields(**values: object) -> dict[str, dict[str, object]]:
    """What belongs to an event, for ``extra=`` of a logging call: run_id, entry, call, pause (seconds) and the like."""
    return {"fields": values}
