"""Settings that no deployment should have: one clear error that names the variable, before anything is done."""

from __future__ import annotations

import pytest

from pm_dagster.core.errors import ConfigurationError
from pm_dagster.core.settings import SETTINGS, Settings, settings_from

_NUMBERS = [name for name, default, _ in SETTINGS if type(default) in (int, float)]
_ABSURD = [
    "nan",
    "inf",
    "-inf",
    "1e308",
    "1e-308",
    "9" * 30,
    "9" * 5000,
    "-1",
    "",
    " ",
    "0x10",
    "1;--",
    "'",
    "٣",
    "1_0",
]


@pytest.mark.parametrize("value", _ABSURD, ids=lambda value: value[:12])
@pytest.mark.parametrize("name", _NUMBERS)
def test_a_number_is_within_bounds_or_refused_by_name(name: str, value: str) -> None:
    try:
        settings = settings_from({name: value})
    except ConfigurationError as error:
        text = str(error)
        assert (name in text, len(text) < 6000) == (True, True)
    else:
        number = next(getattr(settings, field) for field in vars(settings) if _variable(field) == name)
        assert 0 <= number <= 1_000_000


def _variable(field: str) -> str:
    return str(Settings.__dataclass_fields__[field].metadata.get("variable"))


@pytest.mark.parametrize("name", [name for name, *_ in SETTINGS])
def test_bytes_that_are_no_text_are_refused_by_name_without_the_value(name: str) -> None:
    with pytest.raises(ConfigurationError, match=name) as caught:
        settings_from({name: "geheim\udcff"})
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["PM_STATUS_SCHEDULED", "PM_STATUS_FAILED", "PM_STATUS_SUCCEEDED"])
def test_a_status_after_the_work_is_not_that_of_waiting(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{name} and PM_STATUS_WAITING"):
        settings_from({name: "open", "PM_STATUS_WAITING": "open"})


def test_a_parameter_that_stands_twice_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"PM_JOB_PARAMETERS.*twice"):
        settings_from({"PM_JOB_PARAMETERS": "A=x,B=y,A=z"})


def test_no_two_control_tables_share_a_name_in_the_ledger() -> None:
    pairs = [("a.b", "c"), ("a", "b.c"), ('"a.b"', "c"), ("a", "b"), ('a"."b', "c"), ("a", 'b"."c'), ("a", "b.c.d")]
    names = {Settings(schema=schema, run_table=table).control_table for schema, table in pairs}
    assert len(names) == len(pairs)
    assert Settings(schema="Own er%", run_table="T{x}").control_table == "Own er%.T{x}"
