"""An answer of any length is worked off at once, and a text cut short still shows no secret."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pm_dagster.core.errors import ProcessManagerError
from pm_dagster_tests.security.scanner import Scanner
from pm_dagster_tests.workspace.tiny_server import TOKEN, Reply, TinyServer, json_reply, tiny_server

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
    assert len(_told(server, Reply(400, text))) < 600
    assert len(_told(server, json_reply(404, error_code=text, message=text))) < 1100


@pytest.mark.parametrize("before", range(0, 40, 3))
def test_a_secret_at_the_place_of_the_cut(server: TinyServer, before: int) -> None:
    """Everything before it is masked away, so what was cut comes to the front."""
    masked = f"{TOKEN} " * 400
    text = masked[: 8192 - before - len(TOKEN) % 7] + TOKEN
    assert Scanner({"token": TOKEN}).found_in(_told(server, Reply(400, text))) == set()
