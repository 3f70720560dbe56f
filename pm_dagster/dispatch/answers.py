"""What an HTTP answer other than 2xx says, and about whom or what.

The one classification of refusals, as a pure function. What follows from a kind is in ``rules``. Only what the Jobs
API itself says about a row may count against the row: JSON with an error code. All else is about the credentials, the
address, the way there, or the moment.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from pm_dagster.errors import Kind


@dataclass(frozen=True)
class Asked:
    """What was asked: the API's path without version, such as ``jobs/run-now``, and whom it named.

    ``parameters`` are the row's own texts, which an answer may repeat.
    """

    path: str = ""
    job_id: int | None = None
    run_id: int | None = None
    parameters: Mapping[str, str] = field(default_factory=dict)


_BAD_REQUEST, _UNAUTHORIZED, _FORBIDDEN, _NOT_FOUND, _GONE, _TOO_MANY, _SERVER_ERROR = 400, 401, 403, 404, 410, 429, 500
#: 408 a time-out, 423 locked, 425 too early, 499 the other side gave up.
_PASSING_STATUSES = frozenset({408, 423, 425, 499})
#: What gateways, proxies and other servers say about a request that the Jobs API would take. 413 and 431 as well: the
#: Jobs API itself says 400 to parameters that are too long.
_ADDRESS_STATUSES = frozenset({402, 405, 406, 407, 411, 413, 414, 415, 417, 421, 426, 431, 451})

_CREDENTIAL_CODES = frozenset({"INVALID_TOKEN", "INVALID_ACCESS_TOKEN", "UNAUTHENTICATED", "UNAUTHORIZED"})
_THROTTLE_CODES = frozenset({"REQUEST_LIMIT_EXCEEDED", "RESOURCE_EXHAUSTED", "TOO_MANY_REQUESTS", "RATE_LIMITED"})
_ADDRESS_CODES = frozenset({"ENDPOINT_NOT_FOUND", "METHOD_NOT_ALLOWED", "UNIMPLEMENTED", "NOT_IMPLEMENTED"})
#: A code with one of these words passes by itself, whatever service of the workspace gave it.
_PASSING_WORDS = frozenset({
    "LOCK", "LOCKED", "ABORTED", "CANCELLED", "CANCELED", "DEADLINE", "TEMPORARILY", "TEMPORARY", "TRANSIENT",
    "UNAVAILABLE", "TIMEOUT", "TIMED", "RETRY", "BUSY", "MAINTENANCE", "INTERNAL", "UNKNOWN", "DATA_LOSS",
})  # fmt: skip
#: What the Jobs API gives about a row: https://docs.databricks.com/api/workspace/jobs, and what was seen of it.
_ROW_CODES = frozenset({
    "INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "NOT_FOUND", "PERMISSION_DENIED", "MALFORMED_REQUEST",
    "INVALID_STATE", "INVALID_STATE_TRANSITION", "FEATURE_DISABLED", "BAD_REQUEST", "RESOURCE_CONFLICT",
    "RESOURCE_ALREADY_EXISTS", "ALREADY_EXISTS", "FAILED_PRECONDITION", "OUT_OF_RANGE", "INVALID_ARGUMENT",
})  # fmt: skip
_ABSENCE_CODES = frozenset({"RESOURCE_DOES_NOT_EXIST", "NOT_FOUND"})

#: An uncertain wording is enough where the Jobs API has not said what it is about by a code of its own. Tokens of other
#: kinds (page tokens, idempotency tokens) are taken out of the text before.
_OTHER_TOKENS = re.compile(r"\b(?:idempotency|page|next[ _]page)[ _]?token\b", re.IGNORECASE)
_WHOLE_CREDENTIALS = re.compile(
    r"(?:error \d+ )?(?:invalid (?:access )?token|unauthenticated|unauthorized)\W*", re.IGNORECASE
)
_CREDENTIALS = re.compile(
    r"\binvalid (?:(?:access|bearer|oauth|aad|authentication|api|personal access) )?token\b"
    r"|\btoken (?:is |has |was |may be |may have )?(?:been )?(?:invalid|expired|revoked|malformed|not valid|disabled)\b"
    r"|\b(?:expired|revoked|malformed) (?:\w+ )?(?:token|jwt)\b"
    r"|\bjwt (?:is |has )?(?:expired|malformed|invalid)|\bjsonwebtoken\b|\bjwtexception\b"
    r"|\binvalid (?:credentials?|client secret|issuer|audience|tenant)\b"
    r"|\b(?:credentials?) (?:was|were) not (?:sent|provided)\b|\bunsupported type\W*$"
    r"|\bauthorization failed\b|\bauthentication (?:failed|required|is required)\b|\bnot authenticated\b"
    r"|\bexpected iss\b|\bwrong (?:issuer|tenant|audience)\b|\b(?:issuer|tenant|audience) (?:does not|doesn't) match\b"
    r"|\bunauthorized access to (?:org|workspace)|\buser (?:is )?not authorized\b"
    r"|\b(?:user|principal|identity)\b.{0,120}\b(?:is not a member of|does not belong to|not found in|is not active in)"
    r" (?:this |the )?(?:workspace|org)",
    re.IGNORECASE,
)
_NETWORK = re.compile(
    r"\bip (?:access|acl)|\bblocked by databricks\b|\bunauthorized network access\b|\bpublic (?:network )?access is not"
    r" allowed\b|\bprivate[ -]?link\b|\bprivate access settings\b|\bfront-?end private\b",
    re.IGNORECASE,
)
#: Those that databricks-sdk repeats (``_base_client.py``, 0.30 to 0.162, compared there in upper and lower case), and
#: their kin.
_PASSING = re.compile(
    r"unknownworkerenvironment|does not have any associated worker environments|no worker environment with id"
    r"|unknown worker environment|clusternotready|unexpected error|token bucket limit|try a faster operation"
    r"|\btry(?:ing)? (?:your request |the request |this |it )?again\b|\bretry (?:your|the|this|later|after|in)\b"
    r"|\bplease retry\b|\btemporar(?:y|ily)\b|\bcurrently unavailable\b|\bservice (?:is )?unavailable\b"
    r"|\bcould[ _]not[ _]acquire[ _]lock\b|\bdeadline exceeded\b|\btimed out\b|\bmaintenance\b"
    r"|\bupstream (?:connect|request|server)\b"
    r"|\btoo many requests\b|\brate limit(?:ed)?\b|\btransient\b|\bconcurrent(?:ly)? (?:modif|updat|chang|transaction)",
    re.IGNORECASE,
)
_QUOTA = re.compile(r"\bquota\b|\bjobs? (?:created|creations?)\b.{0,60}\b(?:seconds|hour)", re.IGNORECASE)
_ADDRESS = re.compile(
    r"\bbad target\b|\bno api found\b|\bendpoint (?:is )?not found\b|\bno (?:such )?(?:route|endpoint|handler)\b"
    r"|\bmethod not allowed\b|\bnot available (?:at|on|for) (?:the )?account\b|\baccount[ -]level\b",
    re.IGNORECASE,
)
_ABSENT = (
    r"(?:(?:does not|doesn[\u2019']t|did not|no longer)\s+exists?"
    r"|(?:(?:was|is|could|can)\s?(?:not|n[\u2019']t)|(?:could|can|was|is)n[\u2019']t|not)\s+(?:be\s+)?found"
    r"|(?:was|is|has been|had been|got)\s+(?:already\s+)?(?:deleted|removed|purged|expired))\b"
)
#: Something else than a job or run that is not there.
_ANOTHER_ABSENT = re.compile(
    r"\b(?:workspace|organi[sz]ation|org|account|endpoint|api|route|host|tenant|subscription|page|url)\b.*\b(?:not"
    r" found|not be found|(?:does not|doesn[\u2019']t|no longer) exist|unknown)\b",
    re.IGNORECASE,
)
_IDENTIFIERS = re.compile(r"\[[^\]]*\]|\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", re.IGNORECASE)
#: How the API speaks of what was named in the call, without its id.
_THIS_ONE = re.compile(
    r"\b(?:the|this|a|cannot|can't|unable to|to|latest|job|run|active)[ _](?:\w+ ){0,2}"
    r"(?:runs?|jobs?|repairs?|tasks?)\b"
    r"|\b(?:latest_)?repair(?:_id|s|ed|ing)?\b|\bjob_parameters?\b|\bjob parameters?\b|\bidempotency[ _]token\b"
    r"|\b(?:run_id|job_id|rerun_\w+|queue)\b",
    re.IGNORECASE,
)
_JOB_IS_ABSENT = re.compile(r"\bjob\b.*\b(?:does not exist|doesn[\u2019']t exist|not found)", re.IGNORECASE)
_SHORTEST_ECHO = 3


def classify(asked: Asked, status: int, error_code: str | None, message: str, *, is_json: bool) -> Kind:
    """What an answer of this HTTP status (not 2xx) is about.

    Args:
        asked: The call that was answered.
        status: The HTTP status.
        error_code: The JSON's textual code; None where there is none, or a number.
        message: The text as it came, secrets and all: a mask would hide the words that are looked for.
        is_json: Whether the answer is a JSON object.
    """
    code = (error_code or "").upper()
    text = _without_echo(asked, message)
    if status < _BAD_REQUEST:
        return Kind.NETWORK if _NETWORK.search(text) else Kind.FOREIGN
    if status >= _SERVER_ERROR or status in _PASSING_STATUSES:
        return Kind.MOMENT
    if status == _TOO_MANY:
        return Kind.THROTTLED
    if status in _ADDRESS_STATUSES:
        return Kind.FOREIGN
    if _names_absent(asked, code, text, status) and is_json:
        return Kind.GONE if _is_reading(asked) else Kind.NAMED
    return _of_us(status, code, text) or _of_the_moment(code, text) or _of_the_row(asked, status, code, text, is_json)


def says_job_is_absent(message: str) -> bool:
    """Whether an answer's text, as it came, says that a job does not exist."""
    return bool(_JOB_IS_ABSENT.search(message))


def _without_echo(asked: Asked, message: str) -> str:
    """The text without the row's own values: a file may be called "try again"."""
    for value in sorted(asked.parameters.values(), key=len, reverse=True):
        if len(value) >= _SHORTEST_ECHO:
            message = message.replace(value, "<value>")
    return message


def _of_us(status: int, code: str, text: str) -> Kind | None:
    if _NETWORK.search(text) and code not in _ROW_CODES - {"PERMISSION_DENIED", "BAD_REQUEST"}:
        return Kind.NETWORK
    if code in _CREDENTIAL_CODES or _WHOLE_CREDENTIALS.fullmatch(text.strip()):
        return Kind.CREDENTIALS
    passing = _PASSING.search(text) and status != _UNAUTHORIZED
    by_text = not passing and _CREDENTIALS.search(_OTHER_TOKENS.sub("", text))
    if by_text and code not in _ROW_CODES - {"PERMISSION_DENIED", "BAD_REQUEST"}:
        return Kind.CREDENTIALS
    return Kind.CREDENTIALS if status == _UNAUTHORIZED else None


def _of_the_moment(code: str, text: str) -> Kind | None:
    if code in _THROTTLE_CODES:
        return Kind.THROTTLED
    if "QUOTA" in code or (code and _QUOTA.search(text)):
        return Kind.QUOTA
    if _PASSING_WORDS & {code, *code.split("_")} or _PASSING.search(text):
        return Kind.MOMENT
    return None


def _of_the_row(asked: Asked, status: int, code: str, text: str, is_json: bool) -> Kind:  # noqa: FBT001 handed on
    if not is_json or not code or code in _ADDRESS_CODES or _ADDRESS.search(text):
        return Kind.FOREIGN
    if code in _ABSENCE_CODES and _target(asked) and _ANOTHER_ABSENT.search(text):
        return Kind.FOREIGN
    if status == _FORBIDDEN or code == "PERMISSION_DENIED":
        return Kind.FORBIDDEN
    if code == "RESOURCE_DOES_NOT_EXIST" and _is_reading(asked) and not _speaks_of_another(asked, text):
        return Kind.GONE
    if code in _ROW_CODES:
        return Kind.NAMED if _names(asked, text) else Kind.UNNAMED
    return Kind.UNKNOWN


def _is_reading(asked: Asked) -> bool:
    """Whether the call asks for one thing, so that its absence is the answer."""
    return asked.path.endswith(("runs/get", "jobs/get", "secrets/get", "secrets/list"))


def _target(asked: Asked) -> tuple[str, int] | None:
    """What the call asks for or works on."""
    if asked.run_id is not None:
        return "run", asked.run_id
    return None if asked.job_id is None else ("job", asked.job_id)


def _names_absent(asked: Asked, code: str, text: str, status: int) -> bool:
    """Whether the text says that exactly what the call names is not there."""
    target = _target(asked)
    if target is None or status not in (_BAD_REQUEST, _NOT_FOUND, _GONE) or code in _ADDRESS_CODES:
        return False
    word, number = target
    place = r"(?:\s+(?:in|of|for|from)\s+(?:the\s+|this\s+)?(?:job|workspace)(?::?\s*\w*)?)*"
    absent = re.compile(rf"\b{word}:?\s*(?:with\s+)?(?:id:?\s*)?{number}(?!\d){place}\s+{_ABSENT}", re.IGNORECASE)
    return bool(absent.search(text))


def _speaks_of_another(asked: Asked, text: str) -> bool:
    """Whether a text that does not name the run names something else, by word or number."""
    target = _target(asked)
    numbers = re.findall(r"(?<![\w.])\d+(?![\w.]\w)", _IDENTIFIERS.sub("", text))
    if target is None:
        return False
    word, number = target
    other_word = re.search(
        r"\b(?:cluster|warehouse|endpoint|workspace|user|account|policy|pipeline)\b", text, re.IGNORECASE
    )
    other_kind = (
        word == "run" and re.search(r"\bjob\b", text, re.IGNORECASE) and not re.search(r"\brun\b", text, re.IGNORECASE)
    )
    return bool(other_word or other_kind) or any(each != str(number) for each in numbers)


def _names(asked: Asked, text: str) -> bool:
    """Whether the text names this job, this run or these parameters, or speaks of them without another's id."""
    ids = [str(each) for each in (asked.job_id, asked.run_id) if each is not None]
    numbers = re.findall(r"(?<!\w)\d+(?!\w)", _IDENTIFIERS.sub("", text))
    if any(each in ids for each in numbers):
        return True
    if "<value>" in text or any(re.search(rf"\b{re.escape(name)}\b", text) for name in asked.parameters if name):
        return True
    others = re.findall(r"\b(?:job|run)s?:?\s*(?:id:?\s*)?(\d+)", text, re.IGNORECASE)
    return not others and bool(_THIS_ONE.search(text))
