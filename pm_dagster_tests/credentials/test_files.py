"""Secrets from files."""

from __future__ import annotations

from pathlib import Path

import pytest

from pm_dagster.config.credentials import DATABASE, WORKSPACE, resolved
from pm_dagster.config.masking import scrubbed
from pm_dagster.errors import ConfigurationError


def _read(path: Path) -> str:
    return resolved({"PGPASSWORD": path.as_uri()}).environment["PGPASSWORD"]


@pytest.mark.parametrize(
    ("content", "secret"),
    [
        (b"word", "word"),
        (b"word\n", "word"),
        (b"word\r\n", "word"),
        (b"word\n\n", "word\n"),
        (b"word\r", "word\r"),
        (b" a b ", " a b "),
        ("pässwörd\n".encode(), "pässwörd"),
        (b"keyvault://team/name", "keyvault://team/name"),
    ],
)
def test_the_content_less_one_newline(tmp_path: Path, content: bytes, secret: str) -> None:
    (tmp_path / "a file").write_bytes(content)
    assert _read(tmp_path / "a file") == secret


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "it is empty"),
        (b"\n", "it is empty"),
        (b"\xff\xfe", "not text in UTF-8"),
        (b"a\0b", "NUL"),
        (b"x" * 70_000, "larger than 64 KiB"),
    ],
)
def test_content_that_is_no_secret(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "pw").write_bytes(content)
    with pytest.raises(ConfigurationError, match=words) as caught:
        _read(tmp_path / "pw")
    assert str(caught.value).startswith(f"PGPASSWORD (file {tmp_path}/pw): ")


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="there is no such file"):
        _read(tmp_path / "nothing")
    with pytest.raises(ConfigurationError, match="Is a directory"):
        _read(tmp_path)
    with pytest.raises(ConfigurationError, match="cannot be read: Not a directory"):
        _read(Path("/dev/null/pw"))


def test_a_device_does_not_end_never() -> None:
    with pytest.raises(ConfigurationError, match="larger than"):
        _read(Path("/dev/zero"))


def test_every_variable_is_looked_at_and_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "pw").write_text("word\n")
    reference = (tmp_path / "pw").as_uri()
    found = resolved(
        {"PM_POSTGRES_HOST": reference, "ARM_CLIENT_ID": reference, "PM_WAIT_VIEW": reference, "X": "file:/"}
    )
    assert found.environment == {
        "PM_POSTGRES_HOST": "word",
        "ARM_CLIENT_ID": "word",
        "PM_WAIT_VIEW": reference,
        "X": "file:/",
    }
    assert {(origin.variable, origin.source) for origin in found.origins} == {
        ("PM_POSTGRES_HOST", f"file {tmp_path}/pw"),
        ("ARM_CLIENT_ID", f"file {tmp_path}/pw"),
    }


def test_what_only_looks_like_a_reference_names_its_variable() -> None:
    with pytest.raises(ConfigurationError) as caught:
        resolved({"DATABRICKS_TOKEN": "hunter2://token"})
    assert str(caught.value).startswith("DATABRICKS_TOKEN looks like a reference to a secret, but ")
    assert "hunter2" not in str(caught.value)


def test_what_was_read_is_masked_in_every_text_until_it_changes(tmp_path: Path) -> None:
    (tmp_path / "pw").write_text("s3cret-one")
    (tmp_path / "token").write_text("s3cret-two")
    given = {
        "PM_POSTGRES_PASSWORD": (tmp_path / "pw").as_uri(),
        "DATABRICKS_TOKEN": (tmp_path / "token").as_uri(),
        "PM_POSTGRES_URL": "postgresql://u:s3cret-three@h/d",
        "JFROG_TOKEN": "s3cret-four",
    }
    resolved(given, WORKSPACE)
    resolved(given, DATABASE)
    assert scrubbed("s3cret-one s3cret-two s3cret-three s3cret-four") == "*** *** *** ***"
    (tmp_path / "pw").write_text("s3cret-five")
    resolved(given, DATABASE)
    assert scrubbed("s3cret-five s3cret-two") == "*** ***"
