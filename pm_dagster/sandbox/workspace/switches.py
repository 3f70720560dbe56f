"""What nobody has established about the real service, as switches: each can be had either way.

The default is the likelier way.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any


def _choice(default: Any, about: str, *choices: object) -> Any:  # noqa: ANN401  # as dataclasses.field itself
    return field(default=default, metadata={"about": about, "choices": choices or None})


@dataclass
class Switches:
    """The open questions of the Jobs API; set attributes directly or by ``set``."""

    unknown_run_status: int = _choice(400, "HTTP status for a run that does not exist or is gone", 400, 404)
    unknown_job_status: int = _choice(400, "HTTP status of jobs/get for a job that does not exist", 400, 404)
    deleted_token: str = _choice(
        "error", "run-now with the idempotency token of a deleted run", "error", "existing", "new_run"
    )
    deleted_token_code: str = _choice(
        "INVALID_PARAMETER_VALUE",
        "error_code of that error",
        "INVALID_PARAMETER_VALUE",
        "RESOURCE_DOES_NOT_EXIST",
        "INVALID_STATE",
    )
    token_scope: str = _choice("workspace", "what an idempotency token is unique in", "workspace", "job")
    repair_refusal_code: str = _choice(
        "INVALID_PARAMETER_VALUE",
        "error_code when the run to repair is active",
        "INVALID_PARAMETER_VALUE",
        "INVALID_STATE",
    )
    repair_refusal_status: int = _choice(400, "HTTP status when the run to repair is active", 400, 409)
    stale_repair_id_code: str = _choice(
        "INVALID_PARAMETER_VALUE",
        "error_code when latest_repair_id is missing or stale",
        "INVALID_PARAMETER_VALUE",
        "INVALID_STATE",
    )
    first_repair_with_id: str = _choice("ignore", "a first repair that carries latest_repair_id", "ignore", "refuse")
    repair_of_success: str = _choice("refuse", "repair of a run without failed tasks", "refuse", "accept")
    repair_of_skipped: str = _choice("refuse", "repair of a run that never ran", "refuse", "accept")
    repair_without_selector: str = _choice(
        "refuse", "repair with neither rerun_tasks nor rerun_all_failed_tasks", "refuse", "accept"
    )
    repair_at_limit: str = _choice("queue", "repair when the job has no free place", "queue", "start", "refuse")
    attempt_number_on_repair: str = _choice("grows", "attempt_number of a repaired task", "grows", "zero")
    history_lag_reads: int = _choice(0, "a repair shows in the history only after this many reads of the run")
    history_lag_seconds: float = _choice(0.0, "a repair shows in the history only after this many seconds")
    stale_scope: str = _choice("history", "what lags: only the history, or the whole run", "history", "run")
    original_has_id: bool = _choice(False, "the ORIGINAL history item carries an id", True, False)
    history_missing: bool = _choice(False, "runs/get omits repair_history altogether", True, False)
    unknown_states: bool = _choice(False, "runs/get answers state values that no client knows", True, False)
    skipped_result: bool = _choice(True, "a SKIPPED run carries a result_state", True, False)
    run_page_url: str = _choice("legacy", "form of run_page_url: ?o=#job/1/run/2 or /jobs/1/runs/2", "legacy", "path")
    cancel_seconds: float = _choice(0.05, "how long a cancelled run is TERMINATING")
    kill_seconds: float = _choice(5.0, "how long a task that really executes has from SIGTERM to SIGKILL")

    def set(self, **values: object) -> None:
        """Turn several switches; an unknown name or choice is a ValueError and turns none."""
        known = {each.name: each for each in fields(self)}
        for name, value in values.items():
            if name not in known:
                raise ValueError(f"no switch is called {name}")
            choices = known[name].metadata["choices"]
            if choices is not None and value not in choices:
                raise ValueError(f"{name} is one of {list(choices)}")
            if choices is None and (isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0):
                raise ValueError(f"{name} is a number, 0 or more")
        for name, value in values.items():
            setattr(self, name, value)

    def reset(self) -> None:
        """Turn every switch to its default."""
        for each in fields(self):
            setattr(self, each.name, each.default)

    def describe(self) -> dict[str, dict[str, Any]]:
        """Every switch with its value, its choices and what it is about."""
        return {each.name: {"value": getattr(self, each.name), **each.metadata} for each in fields(self)}
