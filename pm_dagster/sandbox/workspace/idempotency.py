"""What a run-now with a token that was used before leads to.

Put here: the token's scope and the fate of a token whose run was deleted. Keep out: starting runs. A token is never
forgotten, and the body that comes with it the second time does not matter.
"""

from __future__ import annotations

from pm_dagster.sandbox.workspace.errors import ApiError
from pm_dagster.sandbox.workspace.memory import Memory
from pm_dagster.sandbox.workspace.model import Run
from pm_dagster.sandbox.workspace.switches import Switches


def key_of(token: str | None, job_id: int, switches: Switches) -> str | None:
    """What the token is remembered under; None without a token."""
    if not token:
        return None
    within_job = switches.token_scope == "job"  # noqa: S105  # a choice, no secret
    return f"{job_id} {token}" if within_job else token


def run_of(key: str | None, memory: Memory, switches: Switches) -> Run | None:
    """The run that the key began, None if a new one may begin, or the refusal."""
    run_id = None if key is None else memory.tokens.get(key)
    if run_id is None:
        return None
    run = memory.runs.get(run_id)
    if run is not None:
        return run
    fate = switches.deleted_token
    if fate == "existing":
        return memory.gone.get(run_id)
    if fate == "new_run":
        return None
    raise ApiError(400, switches.deleted_token_code, f"Run {run_id} of this idempotency token was deleted.")
