"""What the cluster's program logs: its form, its levels, where it goes, and no secret in any of it."""

from __future__ import annotations

import base64
import json
import logging
import os
from logging.handlers import MemoryHandler
from typing import Any, NoReturn
from urllib.parse import quote

import pytest

from pm_dagster.cluster import entry
from pm_dagster.cluster.options import Ended
from pm_dagster.dispatch.service import Dispatch
from pm_dagster_tests import in_process
from pm_dagster_tests.cli.shell import UNKNOWN_JOB
from pm_dagster_tests.cluster.program import ClusterProgram

_DOWN = "postgresql://someone:geheim-of-url@127.0.0.1:1/db"


def _events(stderr: str) -> list[dict[str, Any]]:
    """Every line of the log, each of which must be one JSON object with the same keys."""
    found = [json.loads(line) for line in stderr.splitlines()]
    for event in found:
        assert set(event) - {"exception"} == {"time", "level", "logger", "event", "fields"}
        assert isinstance(event["fields"], dict)
    return found


def test_json_is_an_object_a_line_with_the_numbers_as_fields(program: ClusterProgram) -> None:
    program.add(2)
    program.add(job_id=UNKNOWN_JOB)

    done = program.run(PM_LOG_FORMAT="json")

    assert done.returncode == 0
    events = _events(done.stderr)
    *_, refused, ran = events
    assert (refused["level"], refused["event"], refused["fields"]["rows"]) == ("error", "rows refused", 1)
    assert (ran["level"], ran["event"]) == ("info", "program finished")
    assert ran["logger"] == "pm_dagster.cluster.entry"
    seconds = ran["fields"].pop("seconds")
    assert seconds > 0
    numbers = {"read": 3, "scheduled": 2, "refused": 1, "left_for_later": 0, "calls": 3}
    assert ran["fields"] == numbers
    assert "process_manager report " not in done.stderr


def test_a_failure_is_an_object_too_and_nothing_stands_beside_it(program: ClusterProgram) -> None:
    """In a process of its own, where libraries and the interpreter could write to standard error as well."""
    done = program.wait_for(program.start("--read", "driver", PM_LOG_FORMAT="json", PM_POSTGRES_URL=_DOWN))
    assert (done.returncode, done.stdout) == (1, "")
    last = _events(done.stderr)[-1]
    assert (last["level"], last["event"]) == ("critical", "dispatch could not run")
    assert last["fields"]["reason"].startswith("the database does not answer")
    assert "geheim" not in done.stderr


@pytest.mark.parametrize(
    ("level", "shown"),
    [
        ("debug", {"debug", "info", "error"}),
        ("", {"info", "error"}),
        ("warning", {"error"}),
        ("error", {"error"}),
    ],
)
def test_the_level_decides_what_is_shown(program: ClusterProgram, level: str, shown: set[str]) -> None:
    program.add()
    program.add(job_id=UNKNOWN_JOB)
    done = program.run(PM_LOG_LEVEL=level, PM_LOG_FORMAT="json")
    assert done.returncode == 0
    assert {event["level"] for event in _events(done.stderr)} == shown


def test_why_it_could_not_run_is_shown_at_every_level(program: ClusterProgram) -> None:
    (event,) = _events(program.run(PM_LOG_LEVEL="error", PM_LOG_FORMAT="json", PM_POSTGRES_URL=_DOWN).stderr)
    assert event["level"] == "critical"


@pytest.mark.parametrize("setting", ["PM_LOG_LEVEL", "PM_LOG_FORMAT"])
def test_a_log_setting_that_cannot_be_used_is_a_line_of_text(program: ClusterProgram, setting: str) -> None:
    done = program.run(**{setting: "loud"})
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert " CRITICAL dispatch could not run " in line
    assert f"{setting}='loud' cannot be used" in line


def test_warnings_of_libraries_have_the_same_form(program: ClusterProgram, monkeypatch: pytest.MonkeyPatch) -> None:
    before = Dispatch.read

    def read(self: Dispatch, limit: int | None) -> Any:  # noqa: ANN401 what it was
        logging.getLogger("a.library").warning("pool of %s is full", os.environ["DATABRICKS_TOKEN"])
        logging.getLogger("a.library").info("not shown")
        return before(self, limit)

    monkeypatch.setattr(Dispatch, "read", read)
    (warning,) = [event for event in _events(program.run(PM_LOG_FORMAT="json").stderr) if event["level"] == "warning"]
    assert (warning["logger"], warning["event"]) == ("a.library", "pool of *** is full")


def test_handlers_of_the_process_stay_and_get_no_event_of_ours(program: ClusterProgram) -> None:
    """As under Databricks, which sets the root's handlers itself."""
    theirs = MemoryHandler(1000)

    def main() -> None:
        logging.getLogger().handlers[:] = [theirs]
        entry.main(["--read", "driver"])
        assert logging.getLogger().handlers == [theirs]

    done = in_process.run(main, "process_manager.py", environment=program.environment())
    assert done.returncode == 0
    assert "program finished" in done.stderr
    assert [record for record in theirs.buffer if record.name.startswith("pm_dagster")] == []


def test_a_second_dispatch_in_the_same_process_logs_each_event_once(program: ClusterProgram) -> None:
    def main() -> None:
        logging.getLogger().handlers[:] = []
        entry.main(["--read", "driver"])
        entry.main(["--read", "driver"])
        logging.getLogger("a.library").warning("of a library")

    done = in_process.run(main, "process_manager.py", environment=program.environment())
    assert done.stderr.count("program finished") == 2
    assert done.stderr.count("of a library") == 1


def _odd_places(secret: str) -> list[str]:
    raw = secret.encode()
    return [
        f"https://h.example.com/api?token={quote(secret, safe='')}",
        f"postgresql://someone:{quote(secret)}@h:5432/db",
        f"Authorization: Basic {base64.b64encode(b'client:' + raw).decode()}",
        base64.b64encode(raw).decode(),
        repr({"password": secret}),
        json.dumps(json.dumps({"client_secret": secret})),
        f"'{secret[: len(secret) // 2 + 4]}",
        raw.hex(),
    ]


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("debug", ["0", "1"])
def test_no_secret_of_an_exception_its_cause_or_an_event_is_logged(
    program: ClusterProgram, monkeypatch: pytest.MonkeyPatch, form: str, debug: str
) -> None:
    token = program.workspace.token
    secrets = {
        "PM_POSTGRES_PASSWORD": 'p&ss/"wörd" % of-the-database',
        "ARM_CLIENT_SECRET": "cl~ent+secret=of'azure-0123456789",
        "JFROG_TOKEN": "jfrog-0123456789-abcdefghij",
    }
    told = [place for secret in (token, *secrets.values()) for place in _odd_places(secret)]

    def read(*_: object) -> NoReturn:
        logging.getLogger("pm_dagster.test").warning(
            "an event", exc_info=ValueError(told), extra={"fields": {"url": told[0], "nested": {told[1]: told}}}
        )
        raise ZeroDivisionError(" and ".join(told)) from KeyError("\n".join(told))

    monkeypatch.setattr(Dispatch, "read", read)
    done = program.run(**secrets, DATABRICKS_AUTH_TYPE="pat", PM_LOG_FORMAT=form, PM_LOG_LEVEL="debug", PM_DEBUG=debug)

    assert (done.returncode, done.stdout) == (1, "")
    assert "dispatch broken off" in done.stderr
    assert ("KeyError" in done.stderr.splitlines()[-1] if form == "json" else "KeyError" in done.stderr) is (
        debug == "1"
    )
    if form == "json":
        _events(done.stderr)
    # What a reader of the log can undo.
    plain = done.stderr.replace("\\\\", "\\").replace('\\"', '"')
    for secret in (token, *secrets.values()):
        leaked = [place for place in (secret, quote(secret, safe=""), secret.encode().hex()) if place in plain]
        assert leaked == []
        assert base64.b64encode(secret.encode()).decode() not in plain


def test_what_databricks_shows_on_the_runs_page_holds_no_secret(program: ClusterProgram) -> None:
    """The text of the exception, which no handler of the log sees."""
    shown = []

    def main() -> None:
        with pytest.raises(Ended) as ended:
            entry.main(["--read", "driver"])
        shown.append(str(ended.value))

    url = _DOWN.replace("geheim-of-url", "geheim%2Fof%2Furl")
    in_process.run(main, "process_manager.py", environment=program.environment(PM_POSTGRES_URL=url))
    (text,) = shown
    assert text.startswith("the dispatch could not run: the database does not answer")
    assert "geheim" not in text
