"""How events look, and that no secret is in them."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from collections.abc import Callable
from logging.handlers import BufferingHandler

import pytest

from pm_dagster.config.masking import MASK, register_secret
from pm_dagster.logs import ROOT, configure, fields
from pm_dagster_tests.security.scanner import forms
from pm_dagster_tests.security.test_scanner import SECRET

_log = logging.getLogger(f"{ROOT}.made_up")


@pytest.fixture(autouse=True)
def _secret(own_secrets: None) -> None:  # noqa: ARG001 it empties the registry before
    register_secret(SECRET)


def _lines(level: str, log: Callable[[], object], *, as_json: bool = False) -> list[str]:
    stream = io.StringIO()
    configure(level, as_json=as_json, stream=stream)
    log()
    return stream.getvalue().splitlines()


def test_a_line_for_people() -> None:
    (line,) = _lines("info", lambda: _log.info("retrying", extra=fields(what="a vault", pause=0.5, error="Throttled")))
    time, rest = line.split(" ", 1)
    assert rest == 'INFO retrying what="a vault" pause=0.5 error=Throttled'
    assert time.endswith("Z")


def test_a_line_for_machines() -> None:
    (line,) = _lines("debug", lambda: _log.debug("sent", extra=fields(run_id=2**53 + 1, pause=None)), as_json=True)
    found = json.loads(line)
    assert found.pop("time").endswith("Z")
    assert found == {
        "level": "debug",
        "logger": "pm_dagster.made_up",
        "event": "sent",
        "fields": {"run_id": 2**53 + 1, "pause": None},
    }


def test_levels_below_are_left_out() -> None:
    assert _lines("warning", lambda: _log.info("retrying")) == []


def test_a_second_call_takes_the_place_of_the_first() -> None:
    first = io.StringIO()
    configure("info", stream=first)
    assert len(_lines("info", lambda: _log.info("once"))) == 1
    assert first.getvalue() == ""


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("form", forms(SECRET))
def test_secrets_are_masked_in_message_and_fields_in_every_form(form: str, *, as_json: bool) -> None:
    text = forms(SECRET)[form].decode()
    (line,) = _lines(
        "info",
        lambda: _log.info("said %s", text, extra=fields(answer=text, more={"of": [text, (text,)]})),
        as_json=as_json,
    )
    assert text not in line
    assert line.count(MASK) == 4


@pytest.mark.parametrize("as_json", [False, True])
def test_secrets_are_masked_in_tracebacks_and_what_caused_them(*, as_json: bool) -> None:
    lines = _lines("error", _fail, as_json=as_json)
    text = "\n".join(lines)
    assert SECRET not in text
    assert f"RuntimeError: {MASK} again" in text
    assert f"KeyError: '{MASK}'" in text
    if as_json:
        (line,) = lines
        assert f"RuntimeError: {MASK} again" in json.loads(line)["exception"]
    else:
        assert all(line.startswith("    ") for line in lines[1:])


def _fail() -> None:
    try:
        _look_up(SECRET)
    except RuntimeError:
        _log.exception("an error suppressed")


def _look_up(key: str) -> None:
    known: dict[str, str] = {}
    try:
        del known[key]
    except KeyError as error:
        raise RuntimeError(f"{key} again") from error


def test_no_handler_that_comes_later_sees_what_was_masked() -> None:
    configure("info", stream=io.StringIO())
    later = BufferingHandler(10)
    logging.getLogger(ROOT).addHandler(later)
    _fail()
    (record,) = later.buffer
    assert SECRET not in str(record.__dict__)
    assert record.exc_info is None


def test_an_object_of_any_kind_is_masked_and_shown() -> None:
    (line,) = _lines("info", lambda: _log.info("said", extra=fields(error=ValueError(SECRET))), as_json=True)
    assert json.loads(line)["fields"] == {"error": MASK}


@pytest.mark.parametrize("as_json", [False, True])
def test_a_text_from_outside_begins_no_line_and_moves_no_cursor(*, as_json: bool) -> None:
    bad = "a\nERROR made up\x1b[2J\u202e"
    (line,) = _lines("info", lambda: _log.info("%s", bad, extra=fields(answer=bad)), as_json=as_json)
    assert line.isprintable()


def test_arguments_that_do_not_fit_lose_no_event() -> None:
    (line,) = _lines("info", lambda: _log.info("no place", SECRET))
    assert "no place" in line
    assert SECRET not in line


def test_without_an_entry_nothing_is_printed() -> None:
    text = "import logging, pm_dagster.logs; logging.getLogger('pm_dagster.made_up').warning('breaker opened')"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""
