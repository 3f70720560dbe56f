"""Secrets go, whatever their form; other words stay."""

from __future__ import annotations

import pytest

from pm_dagster.config.masking import register_secret, scrubbed


@pytest.mark.parametrize(
    "secret",
    [
        "Bearer abc.def-ghi",
        "bearer ABCDEF0123==",
        "Authorization: Basic dXNlcjpwYXNz",
        "dapi0123456789abcdef0123456789abcdef",
        "dapi0123456789abcdef0123456789abcdef-2",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl",
    ],
)
def test_what_has_the_form_of_a_credential_goes(secret: str) -> None:
    told = scrubbed(f"before {secret} after")
    assert secret.rsplit(" ", maxsplit=1)[-1] not in told
    assert told.startswith("before ")
    assert told.endswith(" after")


def test_known_secrets_go_everywhere() -> None:
    assert scrubbed("a s3cret b s3cret", ["s3cret", None, ""]) == "a *** b ***"


def test_a_secret_that_contains_another_goes_whole() -> None:
    assert "tail" not in scrubbed("x secrettail y", ["secret", "secrettail"])


def test_a_registered_secret_goes_from_every_text_the_one_before_it_too() -> None:
    register_secret("s3cret-one")
    assert scrubbed("a s3cret-one b") == "a *** b"
    register_secret("s3cret-two")
    assert scrubbed("s3cret-one s3cret-two") == "*** ***"


def test_the_oldest_are_forgotten_when_many_came_after_them() -> None:
    for number in range(64):
        register_secret(f"s3cret-{number:02}")
    register_secret("s3cret-00")
    register_secret("s3cret-64")
    assert scrubbed("s3cret-00 s3cret-01 s3cret-64") == "*** s3cret-01 ***"


def test_other_words_stay() -> None:
    text = "HTTP 400 INVALID_PARAMETER_VALUE Run 9007199254740993 does not exist."
    assert scrubbed(text, ["a"]) == text
