"""The moments at which a dispatch is killed, each an exact message between it and the database.

Put here: the name of each moment, and the message that it is. Keep out: faults. The pieces of SQL are production's own;
`test_boundaries.py` proves that at each moment the database is in the state that the name promises.
"""

from __future__ import annotations

from enum import StrEnum

from pm_dagster_tests.chaos.deployment import Moment


class Boundary(StrEnum):
    """When the process dies; ``NONE``: it lives."""

    NONE = "no kill"
    BEFORE_CLAIM = "before the claim commits"
    AFTER_CLAIM = "after the claim"
    AFTER_INTENT = "after the intent"
    SUBMITTED_AHEAD = "submitted ahead"
    AFTER_REPLY = "after the reply"
    BEFORE_CLOSING = "before closing"
    AFTER_CLOSING = "after closing"


_CLAIM = "INSERT INTO process_manager.entry ("
_CLOSING = "SET state = CASE state WHEN 'ACCEPTED' THEN 'SCHEDULED'"
#: The words of the event that announces the call; a look-up has none, so its is the intent of the repair after it.
_INTENT = {"run-now": '"run-now with token', "runs/repair": '"repair of run', "runs/get": '"repair of run'}


#: Two calls in flight and one ahead.
AHEAD_SETTINGS = {"PM_CONCURRENCY": "2"}


def _answered(call: str) -> str:
    return f'"kind": "answer", "call": "{call}"'


def moment(boundary: Boundary, call: str) -> Moment | None:
    """The message that a boundary is, for a cell about this call; None for ``NONE``.

    "After the reply": the answer has arrived, and of the transaction that records it nothing is committed. "Submitted
    ahead": one transaction has recorded an answer and the intent of a call that cannot leave yet, for others are under
    way. It needs ``AHEAD_SETTINGS`` and more rows than calls may be in flight.
    """
    return {
        Boundary.NONE: None,
        Boundary.BEFORE_CLAIM: Moment(_CLAIM, "commit", "before"),
        Boundary.AFTER_CLAIM: Moment(_CLAIM, "commit", "after"),
        Boundary.AFTER_INTENT: Moment(_INTENT[call], "commit", "after"),
        Boundary.SUBMITTED_AHEAD: Moment(_INTENT[call], "commit", "after", also=_answered(call)),
        Boundary.AFTER_REPLY: Moment(_answered(call), "statement", "before"),
        Boundary.BEFORE_CLOSING: Moment(_CLOSING, "commit", "before"),
        Boundary.AFTER_CLOSING: Moment(_CLOSING, "commit", "after"),
    }[boundary]
