"""Credentials as Docker, systemd, Windows editors, `echo` and copying leave them: as meant, or refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from pm_dagster.config.credentials import DATABASE, WORKSPACE, looked_up, resolved
from pm_dagster.errors import ConfigurationError

_PASSWORDS = [
    "PM_POSTGRES_PASSWORD",
    "PGPASSWORD",
    "DATABRICKS_PASSWORD",
    "DATABRICKS_CLIENT_SECRET",
    "ARM_CLIENT_SECRET",
]
_OTHERS = [name for name in (*DATABASE, *WORKSPACE, "PM_SECRETS") if name not in (*_PASSWORDS, "PM_SCHEMA")]
_SIGN_IN = ["DATABRICKS_AUTH_TYPE", "DATABRICKS_CONFIG_PROFILE", "ARM_USE_MSI", "ARM_ENVIRONMENT"]
_MARKS = ["'{}'", '"{}"', "\u201c{}\u201d", "\u2018{}\u2019"]
_UNSEEN = ["{} ", " {}", "{}\t", "{}\u00a0", "\u200b{}"]
_LINE_ENDS = ["{}\r", "{}\n", "{}\r\n", "\ufeff{}"]


def _plain(name: str) -> str:
    return "databricks-secret://hunter2" if name == "PM_SECRETS" else "hunter2"


@pytest.mark.parametrize("name", [name for name in (*_OTHERS, *_SIGN_IN) if name != "PM_SECRETS"])
def test_what_nobody_sees_around_a_place_or_a_token_is_left_out(name: str) -> None:
    for form in (*_UNSEEN, *_LINE_ENDS):
        assert resolved({name: form.format("hunter2")}).environment == {name: "hunter2"}


@pytest.mark.parametrize("name", [*_OTHERS, *_PASSWORDS, *_SIGN_IN])
def test_marks_around_a_value_are_refused_by_name(name: str) -> None:
    for form in _MARKS:
        with pytest.raises(ConfigurationError, match=f"^{name}.*quotation marks") as caught:
            resolved({name: form.format(_plain(name))})
        secret = name in (*_PASSWORDS, "DATABRICKS_TOKEN", "PM_POSTGRES_URL")
        assert not secret or "hunter2" not in str(caught.value)


@pytest.mark.parametrize("name", _PASSWORDS)
def test_no_password_ends_with_a_line(name: str) -> None:
    for form in _LINE_ENDS:
        assert resolved({name: form.format("hunter2")}).environment == {name: "hunter2"}


@pytest.mark.parametrize("name", _PASSWORDS)
def test_blanks_at_the_end_of_a_password_are_refused_without_the_value(name: str, tmp_path: Path) -> None:
    for form in _UNSEEN:
        with pytest.raises(ConfigurationError, match=f"^{name} .*file:///PATH") as caught:
            resolved({name: form.format("hunter2")})
        assert "hunter2" not in str(caught.value)
        (tmp_path / "it").write_text(form.format("hunter2"))
        assert resolved({name: (tmp_path / "it").as_uri()}).environment == {name: form.format("hunter2")}


@pytest.mark.parametrize("value", ["it's", "'", "pass word", "50%", "a#b c # d", "$x", '"begins'])
def test_a_password_may_hold_nearly_anything(value: str) -> None:
    assert resolved({"PGPASSWORD": value}).environment == {"PGPASSWORD": value}


@pytest.mark.parametrize("content", [b"\xef\xbb\xbfhunter2", b"hunter2\r\n", b"\xef\xbb\xbfhunter2\r\n"])
@pytest.mark.parametrize("name", ["PGPASSWORD", "DATABRICKS_TOKEN", "PM_POSTGRES_URL", "PM_SCHEMA"])
def test_a_file_by_a_windows_editor(tmp_path: Path, content: bytes, name: str) -> None:
    (tmp_path / "it").write_bytes(content)
    assert resolved({name: (tmp_path / "it").as_uri()}).environment == {name: "hunter2"}


def test_a_reference_with_something_around_it_is_one(tmp_path: Path) -> None:
    (tmp_path / "it").write_text("hunter2")
    uri = (tmp_path / "it").as_uri()
    assert resolved({"PGPASSWORD": f" {uri}\r\n"}).environment == {"PGPASSWORD": "hunter2"}
    with pytest.raises(ConfigurationError, match=r"^PGPASSWORD has quotation marks"):
        resolved({"PGPASSWORD": f'"{uri}"'})


def test_doctor_gets_them_all_and_a_command_only_its_own() -> None:
    given = {"PGHOST": "'h'", "DATABRICKS_TOKEN": '"t"', "ARM_USE_MSI": "'true'"}
    assert {failure.variable for failure in looked_up(given).failures} == set(given)
    with pytest.raises(ConfigurationError, match="PGHOST"):
        resolved(given, DATABASE)
    assert "DATABRICKS_TOKEN" in resolved({"DATABRICKS_TOKEN": '"t"'}, DATABASE).environment


def test_key_value_pairs_may_end_with_a_mark() -> None:
    url = "host=h password='it is'"
    assert resolved({"PM_POSTGRES_URL": url}).environment == {"PM_POSTGRES_URL": url}
