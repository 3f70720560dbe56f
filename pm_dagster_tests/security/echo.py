"""A workspace, a vault and a database that repeat what was sent to them, in every form, wherever an answer has room.

Put here: the answers. Keep out: what must not be seen afterwards.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from pm_dagster_tests.credentials.internet import Asked, Reply, Site, json_reply
from pm_dagster_tests.security.scanner import forms

#: Jobs of which every call is answered with an echo.
REFUSED, HTML, CODE, REDIRECT, THROTTLED, GARBLED = 1, 2, 3, 4, 5, 6


def all_forms(secret: str) -> str:
    """A secret in every form and in pieces, in one line."""
    return " | ".join([*(form.decode() for form in forms(secret).values()), secret[:14], secret[-14:]])


def _refused(asked: Asked) -> Reply:
    text = f"cannot read the token {all_forms(asked.bearer)}\nAuthorization: {asked.headers['authorization']}"
    return json_reply({"error_code": "INVALID_PARAMETER_VALUE", "message": text}, 400)


def _html(asked: Asked) -> Reply:
    headers = "\n".join(f"{name}: {value}" for name, value in asked.headers.items())
    page = f"<html><title>{asked.bearer}</title><pre>{headers}\n{all_forms(asked.bearer)}</pre></html>"
    return Reply(400, page.encode(), {"Content-Type": "text/html", "X-Echo": asked.bearer})


def _code(asked: Asked) -> Reply:
    return json_reply({"error_code": asked.bearer, "message": {"nested": [asked.bearer]}}, 404)


def _redirect(asked: Asked) -> Reply:
    return Reply(302, all_forms(asked.bearer).encode(), {"Location": f"https://elsewhere.example.com/{asked.bearer}"})


def _throttled(asked: Asked) -> Reply:
    message = {"error_code": "REQUEST_LIMIT_EXCEEDED", "message": all_forms(asked.bearer)}
    return json_reply(message, 429, Retry_After=asked.bearer)


def _garbled(asked: Asked) -> Reply:
    return json_reply({"run_id": asked.bearer, "token": all_forms(asked.bearer)})


_ANSWERS: Mapping[int, Callable[[Asked], Reply]] = {
    REFUSED: _refused,
    HTML: _html,
    CODE: _code,
    REDIRECT: _redirect,
    THROTTLED: _throttled,
    GARBLED: _garbled,
}
JOBS = tuple(_ANSWERS)


def echoing(site: Site) -> Site:
    """The workspace: echoes for those jobs, and in the words of every run it shows."""
    throttled: set[int] = set()

    def answer(asked: Asked) -> Reply:
        if asked.method == "POST" and asked.path.endswith("/run-now"):
            job = json.loads(asked.body)["job_id"]
            # For good it would be throttled until the deadline.
            echo = _ANSWERS.get(REFUSED if job in throttled else job)
            if job == THROTTLED:
                throttled.add(job)
            if echo is not None:
                return echo(asked)
        reply = site(asked)
        return _with_words(asked, reply) if asked.path.endswith("/runs/get") and reply.status == 200 else reply

    return answer


def _with_words(asked: Asked, reply: Reply) -> Reply:
    run = json.loads(reply.body)
    run["state"]["state_message"] = f"failed with {all_forms(asked.bearer)}"
    run["run_name"] = asked.bearer
    run["run_page_url"] = f"https://elsewhere.example.com/?token={asked.bearer}"
    return json_reply(run)
