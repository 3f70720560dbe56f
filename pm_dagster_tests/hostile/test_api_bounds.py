"""Answers of the Jobs API without measure: pages, bytes, time, redirects. Each reading ends, with an error of ours."""

from __future__ import annotations

import gzip
from collections.abc import Iterable, Iterator

import pytest

from pm_dagster.databricks.runs import SdkRuns
from pm_dagster.dispatch.model import read_whole
from pm_dagster.errors import ProcessManagerError
from pm_dagster_tests.hostile.adapter_calls import CALLS, RUN
from pm_dagster_tests.hostile.raw_server import RawServer, answer, json_answer, raw_server


def _outcome(call: str, runs: SdkRuns) -> str:
    """The kind of error of ours, which there must be."""
    with pytest.raises(ProcessManagerError) as caught:
        CALLS[call](runs)
    return type(caught.value).__name__


def test_ten_thousand_repairs_over_pages(server: RawServer) -> None:
    def pages(line: str) -> Iterable[bytes]:
        page = int(line.partition("page_token=")[2].split(" ")[0].split("&")[0] or 0)
        history = [{"type": "REPAIR", "id": page * 100 + number} for number in range(1, 101)]
        more = {"next_page_token": str(page + 1)} if page < 99 else {}
        return [json_answer({**RUN, "repair_history": history, **more})]

    server.answer = pages
    assert read_whole(server.runs().look_up(7)).latest_repair_id == 10_000


@pytest.mark.parametrize("call", ["look_up", "find_started"])
def test_a_page_that_comes_again_ends_the_reading(server: RawServer, call: str) -> None:
    server.says(json_answer({**RUN, "runs": [], "next_page_token": "again"}))
    assert _outcome(call, server.runs()) == "WorkspaceUnavailable"


def test_pages_without_end_end(server: RawServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pm_dagster.databricks.jobs_service._MOST_PAGES", 20)
    numbers = iter(range(10_000))
    server.answer = lambda _line: [json_answer({**RUN, "runs": [], "next_page_token": str(next(numbers))})]
    for call in ("look_up", "find_started"):
        assert _outcome(call, server.runs()) == "WorkspaceUnavailable"
    assert next(numbers) < 50


def test_a_body_of_100_megabytes_is_not_read_to_its_end(server: RawServer) -> None:
    sent = 0

    def much(_line: str) -> Iterator[bytes]:
        nonlocal sent
        yield answer(b"", "200 OK", f"Content-Length: {100 * 2**20}")
        for _ in range(100):
            yield b" " * 2**20
            sent += 1

    server.answer = much
    assert _outcome("look_up", server.runs()) == "WorkspaceUnavailable"
    assert sent < 60


@pytest.mark.parametrize("status", ["200 OK", "400 Bad Request"])
def test_a_small_body_that_unpacks_to_a_gigabyte_is_not_unpacked_to_its_end(server: RawServer, status: str) -> None:
    bomb = gzip.compress(b" " * 2**28, 9)
    server.says(answer(bomb, status, "Content-Encoding: gzip"))
    assert _outcome("start", server.runs()) == "WorkspaceUnavailable"


def test_a_body_that_drips_ends_with_the_time_of_a_call(server: RawServer) -> None:
    def drips(_line: str) -> Iterator[bytes]:
        yield answer(b"", "200 OK", "Content-Length: 1000000")
        while not server.released.wait(0.02):
            yield b" "

    server.answer = drips
    assert _outcome("look_up", server.runs(timeout=0.5)) == "WorkspaceUnavailable"


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"])
def test_a_redirect_is_not_followed_and_takes_no_token_along(server: RawServer, status: str) -> None:
    with raw_server() as elsewhere:
        server.says(answer(b"", status, f"Location: {elsewhere.host}/api/2.2/jobs/runs/get"))
        for call in CALLS:
            assert _outcome(call, server.runs()) == "ForeignAnswer"
        assert elsewhere.asked == []
