"""What an idempotency token stands for."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from pm_dagster.dispatch.model import TokenSubject, idempotency_token

_MOMENT = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
_ASKED = TokenSubject(7, {"RUN_ID": "1", "FILE_NAME": "a.csv"}, _MOMENT)
_PLACE = ("env", "public.t", 1, 1)


def test_a_token_is_64_hex_characters_and_the_same_each_time() -> None:
    token = idempotency_token(*_PLACE, _ASKED)
    assert len(token) == 64
    assert int(token, 16) >= 0
    assert token == idempotency_token(*_PLACE, _ASKED)


def test_a_token_depends_on_each_part() -> None:
    tokens = {
        idempotency_token(*_PLACE, _ASKED),
        idempotency_token("other", "public.t", 1, 1, _ASKED),
        idempotency_token("env", "public.u", 1, 1, _ASKED),
        idempotency_token("env", "public.t", 2, 1, _ASKED),
        idempotency_token("env", "public.t", 1, 2, _ASKED),
        idempotency_token("env", "public.t", 11, 17, _ASKED),
        idempotency_token("env", "public.t", 1, 117, _ASKED),
        idempotency_token("env", "public.t", 111, 7, _ASKED),
        idempotency_token(*_PLACE, TokenSubject(8, _ASKED.parameters, _MOMENT)),
        idempotency_token(*_PLACE, TokenSubject(7, {"RUN_ID": "1", "FILE_NAME": "b.csv"}, _MOMENT)),
        idempotency_token(*_PLACE, TokenSubject(7, {"RUN_ID": "1", "FILE": "a.csv"}, _MOMENT)),
        idempotency_token(*_PLACE, TokenSubject(7, {"RUN_ID": "1"}, _MOMENT)),
        idempotency_token(*_PLACE, TokenSubject(7, {"RUN_ID": "1", "FILE_NAME": ""}, _MOMENT)),
        idempotency_token(*_PLACE, TokenSubject(7, {"RUN_ID": "a.csv", "FILE_NAME": "1"}, _MOMENT)),
        idempotency_token(*_PLACE, TokenSubject(7, {}, _MOMENT)),
        idempotency_token(*_PLACE, TokenSubject(7, _ASKED.parameters, _MOMENT + timedelta(microseconds=1))),
        idempotency_token(*_PLACE, TokenSubject(7, _ASKED.parameters)),
    }
    assert len(tokens) == 17


@pytest.mark.parametrize(
    "same",
    [
        TokenSubject(7, {"FILE_NAME": "a.csv", "RUN_ID": "1"}, _MOMENT),
        TokenSubject(7, _ASKED.parameters, _MOMENT.astimezone(timezone(timedelta(hours=5, minutes=30)))),
        TokenSubject(7, _ASKED.parameters, _MOMENT.astimezone(timezone(timedelta(hours=-9)))),
    ],
)
def test_the_same_is_asked_in_another_order_or_zone(same: TokenSubject) -> None:
    assert idempotency_token(*_PLACE, same) == idempotency_token(*_PLACE, _ASKED)


def test_a_text_that_no_encoding_knows_has_a_token() -> None:
    strange = TokenSubject(
        7, {"FILE_NAME": "o'r\"d\n\x1f\u20ac\U0001f600"}, datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=9)))
    )
    assert len(idempotency_token(*_PLACE, strange)) == 64
