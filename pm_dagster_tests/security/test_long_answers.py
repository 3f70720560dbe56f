"""An answer of any length is worked off at once, and a text cut short still shows no secret."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pm_dagster.config.masking import scrubbed
from pm_dagster.errors import ProcessManagerError
from pm_dagster_tests.databricks.tiny_server import TOKEN, Reply, TinyServer, json_reply, tiny_server
from pm_dagster_tests.security.scanner import Scanner

_MILLION = 1_000_000


@pytest.fixture
def server() -> Iterator[TinyServer]:
    with tiny_server() as running:
        yield running


def _told(server: TinyServer, reply: Reply) -> str:
    server.replies(reply)
    with pytest.raises(ProcessManagerError) as caught:
        server.attempt().do("POST", "/x")
    return str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["-eyJ" * _MILLION, "eyJa." * _MILLION, "basic " * _MILLION, "dapi" * _MILLION, " " * _MILLION, "Run " * _MILLION],
)
def test_no_text_takes_longer_than_its_length(server: TinyServer, text: str) -> None:
    """A search that looks again from each of a million places would not end within the test."""
    # What was answered is cut at 500 characters; what we say about it is added.
    assert len(_told(server, Reply(400, text))) < 700
    assert len(_told(server, json_reply(404, error_code=text, message=text))) < 1100


@pytest.mark.parametrize(
    "text", ["-eyJ" * _MILLION, "-eyJa." * _MILLION, "a.eyJa." * _MILLION, "dapi-" * _MILLION, "bearer " * _MILLION]
)
def test_a_task_may_write_anything(text: str) -> None:
    """The output of a cluster's task is masked before it is cut, and there can be 5 MB of it."""
    assert len(scrubbed(text)) <= len(text)


@pytest.mark.parametrize("secret", ["databricks-of-prod-2026", "prod-2026-of-databricks"])
def test_a_secret_that_begins_or_ends_like_a_common_word(secret: str) -> None:
    assert scrubbed("databricks " * _MILLION, [secret]) == "*** " * _MILLION


@pytest.mark.parametrize("before", ["", " ", "-", "a-", "eyJ", "eyJ-", "_-", "a.b.", "a.b.c.d.", "é-"])
@pytest.mark.parametrize("after", ["", ".", ".x", "-", " eyJ.", "\n"])
def test_a_web_token_is_seen_wherever_it_stands(before: str, after: str) -> None:
    token = "eyJhbGciOi.eyJzdWIiOi.c2lnbmF0dXJl"
    assert "hbGciOi" not in scrubbed(f"{before}{token}{after}")
    assert "c2lnbmF0dXJl" not in scrubbed(f"{before}{token}{after}")


@pytest.mark.parametrize("before", range(0, 40, 3))
def test_a_secret_at_the_place_of_the_cut(server: TinyServer, before: int) -> None:
    """Everything before it is masked away, so what was cut comes to the front."""
    masked = f"{TOKEN} " * 400
    text = masked[: 8192 - before - len(TOKEN) % 7] + TOKEN
    assert Scanner({"token": TOKEN}).found_in(_told(server, Reply(400, text))) == set()
