"""What the commands say ends with one full stop, whatever the texts in it end with."""

from __future__ import annotations

import re

import pytest

from pm_dagster.cli.explain import why
from pm_dagster.config.settings import Settings
from pm_dagster.text import clause, counted, sentence
from pm_dagster_tests.cli.shell import UNKNOWN_JOB, Shell

_REASONS = [
    "Job 7 does not exist.",
    "Job 7 does not exist",
    "why?",
    "stop!",
    "wait...",
    "wait…",
    "ジョブがありません。",
    'it said "no."',
    "(see the log.)",
    "  padded. \n",
    "",
    None,
]
_BAD = re.compile(r"(?<!\.)\.\.(?!\.)|[?!…。]\.|(?<!\.\.)\.\)\.|\.\"\.|\.[;,:]|\s[.;,]|\.\.\.\.")


def _entry(state: str, reason: str | None, **more: object) -> dict[str, object]:
    entry: dict[str, object] = {
        "generation": 1,
        "state": state,
        "open": state not in ("SCHEDULED", "WITHDRAWN"),
        "outcome": None,
        "reason": reason,
        "rule": reason,
        "events": [],
        "not_before": None,
        "backing_off": False,
        "dispatcher_id": 1,
        "actor": "pm",
        "dispatcher_alive": False,
    }
    return entry | more


@pytest.mark.parametrize("reason", _REASONS, ids=ascii)
def test_every_story_ends_once(reason: str | None) -> None:
    settings = Settings()
    waits, failed = {"run_sttus_name": "WAITING"}, {"run_sttus_name": "FAILED"}
    refused = [{"kind": "not closed", "detail": reason or "the table said no."}]
    stories = [
        (failed, _entry("QUARANTINED", reason, open=False)),
        (failed, _entry("SCHEDULED", reason)),
        (waits, _entry("QUARANTINED", reason)),
        (waits, _entry("QUARANTINED", reason, events=refused)),
        (waits, _entry("DEFERRED", reason, backing_off=True)),
        (waits, _entry("DEFERRED", reason)),
        (waits, _entry("ACCEPTED", reason, events=refused)),
        (waits, _entry("SENDING", reason)),
        (waits, _entry("CLAIMED", reason)),
    ]
    for row, entry in stories:
        said = why(row, entry, settings, shown=True, waits=row is waits, held=False)
        assert not _BAD.search(said), said
        assert said[-1] in '.?!…。)"', said
        assert "None" not in said


def test_what_a_workspace_ends_with_a_full_stop_is_told_with_one(shell: Shell) -> None:
    (refused,) = shell.add(job_id=UNKNOWN_JOB)
    (gone,) = shell.add(run=4711)
    shell.json("dispatch")
    for row in (refused, gone):
        said = shell.json("explain", str(row))["why"]
        assert "does not exist" in said
        assert not _BAD.search(said), said
    assert "1 row would go back" in shell.pm("redrive", "--dry-run", str(refused)).stdout
    assert "1 of " in (doctor := shell.pm("doctor").stdout) or "checks are green" in doctor


def test_the_parts() -> None:
    assert [sentence(text) for text in ("a", "a.", "a?", 'a."', "a...")] == ["a.", "a.", "a?", 'a."', "a..."]
    assert [clause(text) for text in ("a", "a.", "a...", "a?")] == ["a", "a", "a...", "a?"]
    assert [counted(number, "row") for number in (0, 1, 2)] == ["0 rows", "1 row", "2 rows"]
