"""What a Databricks run's state means for its waiting job.

Put here: the classification of run states and the reading of a repair history. Keep out: calls and SDK types.
The words are those of the Jobs API (https://docs.databricks.com/api/workspace/jobs/getrun).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

_ACTIVE = frozenset({"BLOCKED", "PENDING", "QUEUED", "RUNNING", "TERMINATING", "WAITING", "WAITING_FOR_RETRY"})
_NEVER_RAN = frozenset({"SKIPPED", "MAX_CONCURRENT_RUNS_EXCEEDED", "MAX_JOB_QUEUE_SIZE_EXCEEDED", "DISABLED"})


class Standing(StrEnum):
    """Where a run stands, as far as a dispatch is concerned."""

    #: Under way, or in a state we do not know: neither repair nor trigger again.
    ACTIVE = "active"
    SUCCEEDED = "succeeded"
    #: Ended without doing all its work; a repair re-runs what failed.
    REPAIRABLE = "repairable"
    #: Never executed (skipped, queue overflow): there is nothing in it to repair.
    NEVER_RAN = "never ran"


@dataclass(frozen=True)
class RunSnapshot:
    """A run as one ``runs/get`` showed it. Words the SDK does not know arrive as None.

    ``latest_repair_id`` is the id of the newest entry of the repair history that has one, None without repairs;
    ``repair_ids`` are all of them in order.
    """

    run_id: int
    job_id: int | None
    life_cycle_state: str | None
    result_state: str | None
    status_state: str | None = None
    termination_code: str | None = None
    message: str = ""
    repair_ids: tuple[int, ...] = ()
    page_url: str | None = None

    @property
    def latest_repair_id(self) -> int | None:
        """The id that the next repair has to name, None for the first."""
        return self.repair_ids[-1] if self.repair_ids else None

    @property
    def words(self) -> str:
        """The state as the workspace words it, for people."""
        seen = (self.life_cycle_state or self.status_state, self.result_state or self.termination_code)
        return "/".join(word for word in seen if word) or "an unknown state"

    @property
    def standing(self) -> Standing:
        """Classify; a run in a state unknown to us counts as active, so that nothing is started beside it."""
        state = self.life_cycle_state or self.status_state
        if state is None or state in _ACTIVE:
            return Standing.ACTIVE
        if state == "SKIPPED" or (self.result_state is None and self.termination_code in _NEVER_RAN):
            return Standing.NEVER_RAN
        if self.result_state == "SUCCESS" or (self.result_state is None and self.termination_code == "SUCCESS"):
            return Standing.SUCCEEDED
        return Standing.REPAIRABLE
