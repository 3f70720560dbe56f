"""Settings that no deployment should have: one clear error that names the variable, before anything is done."""

from __future__ import annotations

import pytest

from pm_dagster.config.setting_values import exact
from pm_dagster.config.settings import SETTINGS, Settings, settings_from
from pm_dagster.errors import ConfigurationError

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


def _field(variable: str) -> str:
    return next(field for field in Settings.__dataclass_fields__ if _variable(field) == variable)


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


_EXACT = [item for item in SETTINGS if Settings.__dataclass_fields__[_field(item[0])].metadata["read"] is exact]
_LISTS = [("PM_COLUMNS_MESSAGE", "a,{}"), ("PM_COLUMNS_MESSAGE", "{}"), ("PM_JOB_PARAMETERS", "A=a,B={}")]
_MARKS = ["'{}'", '"{}"', "`{}`", "\u201c{}\u201d", "\u201e{}\u201c", "\u2018{}\u2019", "\u00ab{}\u00bb", '"{}', "{}'"]
_ENDS = ["{} ", " {}", "{}\r", "{}\n", "\ufeff{}", "{}\t", "{}\u00a0", "\u200b{}", "{}\u3000"]
_INSIDE = ["A\u00a0B", "A\u200bB", "A\tB", "A\nB", "A\u202fB", "A\ufeffB"]
_OTHERS = ["${STATUS}", "$STATUS", "%STATUS%", "A # the status", " ", "''", '""']


@pytest.mark.parametrize("variable", [name for name, *_ in _EXACT])
def test_a_name_or_status_as_another_tool_writes_it_is_refused_by_name(variable: str) -> None:
    for form in (*_MARKS, *_ENDS, *_INSIDE, *_OTHERS):
        value = form.replace("{}", "Some")
        with pytest.raises(ConfigurationError) as caught:
            settings_from({variable: value})
        assert str(caught.value).startswith(f"{variable}={value!r} cannot be used: it ")
        assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "value", ["IN PROGRESS", "納品 待ち", "wartet\u3000noch", "#1", "a#b", "50%", "$1", "o'clock", "Own er%"]
)
def test_what_a_status_may_well_be_is_taken(value: str) -> None:
    assert settings_from({"PM_STATUS_FAILED": value}).status_failed == value


@pytest.mark.parametrize(("variable", "frame"), _LISTS)
def test_so_is_one_in_a_list(variable: str, frame: str) -> None:
    for form in (*_MARKS, *_INSIDE, "${STATUS}"):
        with pytest.raises(ConfigurationError, match=variable):
            settings_from({variable: frame.replace("{}", form.replace("{}", "some"))})


@pytest.mark.parametrize("form", _ENDS, ids=ascii)
def test_what_nobody_sees_around_other_values_is_left_out(form: str) -> None:
    given = {
        "PM_CONCURRENCY": "7",
        "PM_RATE_REPAIR": "2.5",
        "PM_QUEUE": "off",
        "PM_MISSING_RUN": "fail",
        "PM_POSTGRES_HOST": "h",
        "PM_POSTGRES_PORT": "1",
        "PM_POSTGRES_SSLMODE": "require",
        "PM_COLUMNS_MESSAGE": "a,b",
        "PM_JOB_PARAMETERS": "A=a,B=b",
    }
    assert settings_from({name: form.format(value) for name, value in given.items()}) == settings_from(given)


@pytest.mark.parametrize(
    "variable", ["PM_CONCURRENCY", "PM_QUEUE", "PM_MISSING_RUN", "PM_POSTGRES_HOST", "PM_POSTGRES_PORT"]
)
@pytest.mark.parametrize("form", ["'{}'", '"{}"', "{}'"])
def test_marks_around_them_are_refused(variable: str, form: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{variable}=.*quotation marks"):
        settings_from({variable: form.format("1")})
