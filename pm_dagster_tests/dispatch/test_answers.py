"""Whose answer it is: what was seen of the Jobs API, its gateways and others that answered in its place."""

from __future__ import annotations

import pytest

from pm_dagster.dispatch.answers import Asked, classify
from pm_dagster.errors import Kind

START = Asked("/api/2.2/jobs/run-now", job_id=5, parameters={"RUN_ID": "17", "FILE_NAME": "please try again.csv"})
READ = Asked("/api/2.2/jobs/runs/get", run_id=5)
REPAIR = Asked("/api/2.2/jobs/runs/repair", run_id=5)
LIST = Asked("/api/2.2/jobs/runs/list", job_id=5)
INVALID = "INVALID_PARAMETER_VALUE"


def kind(asked: Asked, status: int, code: str | None, message: str) -> Kind:
    """The kind of a JSON answer."""
    return classify(asked, status, code, message, is_json=True)


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (400, INVALID, "Run 5 does not exist."),
        (400, INVALID, "Run: 5 in job: 12 doesn't exist"),
        (400, INVALID, "Run: 5 in workspace: 77 doesn\u2019t exist."),
        (404, "NOT_FOUND", "Run 5 was not found"),
        (404, "RESOURCE_DOES_NOT_EXIST", ""),
        (404, "RESOURCE_DOES_NOT_EXIST", "m"),
        (400, "RESOURCE_DOES_NOT_EXIST", "Run 5 does not exist. [ReqId: d326a0e7-36b8-4972-85c0-f75a17f7d175]"),
        (404, None, "Run 5 does not exist"),
        (410, "RESOURCE_DOES_NOT_EXIST", "Run 5 has been purged"),
    ],
)
def test_a_run_is_gone_only_when_the_api_says_so(status: int, code: str | None, message: str) -> None:
    assert kind(READ, status, code, message) is Kind.GONE


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (INVALID, "Run 55 does not exist."),
        (INVALID, "Run 15 does not exist."),
        (INVALID, "Run 5.5 does not exist."),
        (INVALID, "Run 5 cannot be read, for cluster 7 does not exist."),
        ("RESOURCE_DOES_NOT_EXIST", "Run 55 does not exist."),
        ("RESOURCE_DOES_NOT_EXIST", "Job 5 does not exist."),
        ("RESOURCE_DOES_NOT_EXIST", "Workspace 5 does not exist."),
        ("RESOURCE_DOES_NOT_EXIST", "Endpoint /api/2.2/jobs/runs/get does not exist."),
        ("RESOURCE_DOES_NOT_EXIST", "Organization does not exist"),
        ("NOT_FOUND", "Bad Target: /api/2.2/jobs/runs/get"),
        ("NOT_FOUND", "m"),
        ("ENDPOINT_NOT_FOUND", "No API found for 'GET /jobs/runs/get'"),
        ("PERMISSION_DENIED", "User x does not have View permissions on run 5"),
        ("SOMETHING_NEW", "it is not here"),
        (None, "not found"),
    ],
)
def test_nothing_else_means_gone(code: str | None, message: str) -> None:
    for status in (400, 403, 404):
        assert kind(READ, status, code, message) is not Kind.GONE


@pytest.mark.parametrize(
    "message",
    [
        "com.databricks.backend.manager.util.UnknownWorkerEnvironmentException: WorkerEnvId(1)",
        "Current organization 28 does not have any associated worker environments",
        "There is no worker environment with id 7",
        "unknown worker environment",
        "ClusterNotReadyException",
        "Unexpected error",
        "UNEXPECTED ERROR while handling the request",
        "Please try again later or try a faster operation.",
        "RPC token bucket limit has been exceeded.",
        "Authentication is temporarily unavailable. Please try again later. [TraceId: -]",
        "The service at /api/2.1/jobs/runs/get is temporarily unavailable.",
    ],
)
@pytest.mark.parametrize("code", [INVALID, "BAD_REQUEST", "INVALID_STATE", "PERMISSION_DENIED", "SOMETHING_NEW"])
def test_what_the_sdk_repeats_passes_whatever_its_code(message: str, code: str) -> None:
    for asked in (START, READ, REPAIR):
        assert kind(asked, 400, code, message) is Kind.MOMENT
        assert classify(asked, 400, None, message, is_json=False) is Kind.MOMENT


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, "COULD_NOT_ACQUIRE_LOCK"),
        (409, "COULD_NOT_ACQUIRE_LOCK"),
        (409, "ABORTED"),
        (400, "TEMPORARILY_UNAVAILABLE"),
        (400, "SERVICE_UNAVAILABLE"),
        (403, "WORKSPACE_TEMPORARILY_UNAVAILABLE"),
        (400, "DEADLINE_EXCEEDED"),
        (499, "CANCELLED"),
        (400, "REQUEST_TIMEOUT"),
        (408, "ANY"),
        (423, "LOCKED"),
        (425, "TOO_EARLY"),
        (503, "RESOURCE_DOES_NOT_EXIST"),
        (500, INVALID),
    ],
)
def test_a_passing_state_is_known_by_its_code_or_status(status: int, code: str) -> None:
    assert kind(START, status, code, "m") is Kind.MOMENT


@pytest.mark.parametrize(
    ("asked", "status", "code", "message", "expected"),
    [
        (START, 429, None, "", Kind.THROTTLED),
        (START, 400, "REQUEST_LIMIT_EXCEEDED", "m", Kind.THROTTLED),
        (START, 403, "RESOURCE_EXHAUSTED", "m", Kind.THROTTLED),
        (START, 400, "QUOTA_EXCEEDED", "The quota for the number of jobs has been reached.", Kind.QUOTA),
        (
            START,
            400,
            "INVALID_STATE",
            "There were already 1000 jobs created in past 3600 seconds, exceeding rate limit: 1000 job creations.",
            Kind.QUOTA,
        ),
        (START, 401, None, "", Kind.CREDENTIALS),
        (START, 400, "INVALID_TOKEN", "m", Kind.CREDENTIALS),
        (START, 400, INVALID, "Invalid Token", Kind.CREDENTIALS),
        (START, 403, "PERMISSION_DENIED", "Invalid access token.", Kind.CREDENTIALS),
        (START, 403, "PERMISSION_DENIED", "Unauthorized network access to workspace: 7", Kind.NETWORK),
        (START, 400, INVALID, "The idempotency token is invalid", Kind.NAMED),
        (LIST, 400, INVALID, "Invalid page token", Kind.UNNAMED),
        (START, 400, INVALID, "Job parameter FILE_NAME has an invalid token at position 3", Kind.NAMED),
        (START, 404, "ENDPOINT_NOT_FOUND", "No API found for 'POST /jobs/run-now'", Kind.FOREIGN),
        (START, 404, "NOT_FOUND", "Bad Target: /api/2.2/jobs/run-now", Kind.FOREIGN),
        (START, 404, "RESOURCE_DOES_NOT_EXIST", "The workspace 5 could not be found.", Kind.FOREIGN),
        (START, 405, "METHOD_NOT_ALLOWED", "m", Kind.FOREIGN),
        (START, 413, "MAX_REQUEST_SIZE_EXCEEDED", "m", Kind.FOREIGN),
        (START, 400, None, "no", Kind.FOREIGN),
        (START, 302, None, "to /login.html (private link)", Kind.NETWORK),
        (START, 302, None, "to https://accounts.example/login", Kind.FOREIGN),
        (START, 400, INVALID, "Job 5 does not exist.", Kind.NAMED),
        (START, 404, "RESOURCE_DOES_NOT_EXIST", "Job 5 does not exist.", Kind.NAMED),
        (START, 404, None, "Job 5 does not exist.", Kind.NAMED),
        (START, 400, INVALID, "Job 55 does not exist.", Kind.UNNAMED),
        (START, 400, INVALID, "Parameter RUN_ID is too long", Kind.NAMED),
        (START, 400, INVALID, "please try again.csv is no file", Kind.NAMED),
        (REPAIR, 400, "INVALID_STATE", "The run is active.", Kind.NAMED),
        (REPAIR, 400, INVALID, "latest_repair_id must be specified", Kind.NAMED),
        (START, 400, "BAD_REQUEST", "no", Kind.UNNAMED),
        (START, 403, "FEATURE_DISABLED", "not here", Kind.FORBIDDEN),
        (START, 400, "FEATURE_DISABLED", "not here", Kind.UNNAMED),
        (START, 403, "PERMISSION_DENIED", "User x does not have Manage Run permissions on job 5", Kind.FORBIDDEN),
        (START, 400, "SOMETHING_NEW", "Job 5 is odd", Kind.UNKNOWN),
        (Asked("/api/2.0/secrets/get"), 404, "RESOURCE_DOES_NOT_EXIST", "Scope host 7 does not exist", Kind.GONE),
        (Asked("/api/2.0/secrets/get"), 404, "ENDPOINT_NOT_FOUND", "m", Kind.FOREIGN),
    ],
)
def test_each_answer_has_its_kind(asked: Asked, status: int, code: str | None, message: str, expected: Kind) -> None:
    assert kind(asked, status, code, message) is expected


@pytest.mark.parametrize("message", ["", "<html>no</html>", "Run 5 does not exist.", "Job 5 does not exist."])
def test_what_is_not_json_says_nothing_about_a_row(message: str) -> None:
    for asked in (START, READ, REPAIR, LIST):
        for status in (400, 403, 404, 405, 409, 413):
            assert classify(asked, status, None, message, is_json=False) is Kind.FOREIGN
