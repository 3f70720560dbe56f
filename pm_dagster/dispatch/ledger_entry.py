"""One row of the ledger: what we intended, sent and learned for a waiting job and generation.

Put here: the states and the idempotency token. Keep out: SQL, and the decision what comes next.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from pm_dagster.dispatch.waiting_job import Branch, WaitingJob


class EntryState(StrEnum):
    """The life of an entry; see CONTRIBUTING.md for the diagram."""

    #: A dispatcher works on it; nothing has been sent. A dead dispatcher's claim lapses.
    CLAIMED = "CLAIMED"
    #: The intent is committed; a call may have taken effect. Never released by a clock.
    SENDING = "SENDING"
    #: The workspace's answer is recorded; the control table is still to be written.
    ACCEPTED = "ACCEPTED"
    #: A definite no for now; taken up again after ``not_before``.
    DEFERRED = "DEFERRED"
    #: A no for good; closed when the control table says so as well.
    QUARANTINED = "QUARANTINED"
    #: Closed: the control table has been written.
    SCHEDULED = "SCHEDULED"
    #: Closed: the row left WAITING before anything was sent, or was corrected since, and is taken anew.
    WITHDRAWN = "WITHDRAWN"


@dataclass(frozen=True)
class Entry:
    """An entry that this dispatcher owns, as last written.

    ``sent_repair_id`` is the latest repair id that the recorded repair intent named; ``fresh_run`` is true when a
    repair row is served by a new run because there is nothing left to repair. ``ambiguous`` is true once an answer of
    this generation was lost, so that a call may have taken effect unseen. ``earlier_run_ids`` are the runs of the row's
    earlier generations.
    """

    entry_id: int
    run_id: int
    generation: int
    branch: Branch
    state: EntryState
    job_id: int
    previous_run_id: int | None
    parameters: Mapping[str, str]
    idempotency_token: str
    fresh_run: bool = False
    sent_repair_id: int | None = None
    attempts: int = 0
    taken_over: bool = False
    #: Whether the control table still says WAITING, as of the claim.
    waiting: bool = True
    ambiguous: bool = False
    intent_at: datetime | None = None
    earlier_run_ids: tuple[int, ...] = ()
    #: Why an entry that comes back DEFERRED from its claim is not started.
    reason: str = ""
    #: How the row's owner corrected it since this was sent, for people; empty while it says the same.
    correction: str = ""
    #: What the row asks for now, where it was corrected to something that can be read.
    asks: WaitingJob | None = None
    #: What became of the generation before, where the row was corrected in between.
    note: str = ""

    @property
    def starts_new_run(self) -> bool:
        """True when the call to make is run-now, false when it is a repair."""
        return self.branch is Branch.NEW or self.fresh_run


@dataclass(frozen=True)
class Asked:
    """What a row asks for, as far as its token stands for it; ``since`` is the work's time of arrival."""

    job_id: int
    parameters: Mapping[str, str]
    since: datetime | None = None


def idempotency_token(environment: str, control_table: str, run_id: int, generation: int, asked: Asked) -> str:
    """The token that makes sending a new run again safe: 64 hex characters, the most that run-now takes.

    A pure function of what must not run twice: the row's place in the ledger, and what it asks for. After a restore
    another row may get a number that was given before; it asks for something else, or since another time. The same row
    is met by the same token again, and so by its run. The job id takes part also because the API's answer to one token
    for two jobs is not documented (https://docs.databricks.com/api/workspace/jobs/runnow).
    """
    identity = [environment, control_table, run_id, generation, asked.job_id]
    identity += [sorted(asked.parameters.items()), _moment(asked.since)]
    return hashlib.sha256(json.dumps(identity, ensure_ascii=True).encode()).hexdigest()


def _moment(since: datetime | None) -> str | None:
    """One form for one moment, whatever zone it came in; one without a zone is taken as it is."""
    if since is None:
        return None
    with suppress(OverflowError):
        # The first and the last hours that Python has do not exist in every zone.
        since = since.astimezone(UTC) if since.tzinfo else since
    return since.isoformat(timespec="microseconds")
