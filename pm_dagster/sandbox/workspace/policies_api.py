"""The calls on cluster policies: list and get, over the one policy that the local workspace has.

Put here: that policy and its answers. Keep out: checking clusters against it; the sandbox makes no clusters.
"""

from __future__ import annotations

from pm_dagster.sandbox.workspace.auth import USER_NAME
from pm_dagster.sandbox.workspace.call import Call, Reply
from pm_dagster.sandbox.workspace.errors import ApiError
from pm_dagster.sandbox.workspace.model import Json

POLICY_ID = "sandbox-policy"
_POLICY: Json = {
    "policy_id": POLICY_ID,
    "name": "Job Compute",
    "description": "The policy of the local workspace; it allows everything.",
    "definition": "{}",
    "creator_user_name": USER_NAME,
    "created_at_timestamp": 0,
    "is_default": False,
}


def list_policies(_: Call) -> Reply:
    """All policies."""
    return Reply({"policies": [_POLICY], "total_count": 1})


def get_policy(call: Call) -> Reply:
    """One policy."""
    asked = call.text("policy_id")
    if asked != POLICY_ID:
        raise ApiError(404, "RESOURCE_DOES_NOT_EXIST", f"Can't find a cluster policy with id: {asked}.")
    return Reply(_POLICY)
