"""Every setting has a default and a meaning, and a bad value is named."""

from __future__ import annotations

import traceback

import pytest

from pm_dagster.config.settings import SETTINGS, Settings, read_setting, settings_from
from pm_dagster.errors import ConfigurationError


def test_nothing_set_is_the_defaults() -> None:
    assert settings_from({}) == Settings()


def test_an_empty_variable_leaves_its_default() -> None:
    assert settings_from({variable: "" for variable, _, _ in SETTINGS}) == Settings()


def test_every_setting_has_a_variable_and_a_help_of_its_own() -> None:
    variables = [variable for variable, _, _ in SETTINGS]
    assert len(set(variables)) == len(variables)
    assert all(variable.startswith("PM_") and help_ for variable, _, help_ in SETTINGS)


def test_other_variables_are_not_read() -> None:
    assert settings_from({"PM_NO_SUCH": "x", "DATABRICKS_HOST": "h"}) == Settings()


def test_values_are_read() -> None:
    read = settings_from(
        {
            "PM_SCHEMA": "own",
            "PM_JOB_PARAMETERS": "A=a, B = b ",
            "PM_COLUMNS_MESSAGE": "x,y",
            "PM_QUEUE": "OFF",
            "PM_RATE_REPAIR": "0",
            "PM_DISPATCH_LIMIT": "7",
            "PM_MISSING_RUN": "fail",
            "PM_LIVENESS": "lease",
        }
    )
    assert read.control_table == "own.mm_run_plc"
    assert read.job_parameters == (("A", "a"), ("B", "b"))
    assert (read.columns_message, read.queue, read.rate_repair) == (("x", "y"), False, 0.0)
    assert (read.dispatch_limit, read.missing_run, read.liveness) == (7, "fail", "lease")


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("PM_CONCURRENCY", "0", "from 1 to"),
        ("PM_CONCURRENCY", "many", "many"),
        ("PM_CONCURRENCY", "1.5", "1.5"),
        ("PM_RATE_RUN_NOW", "-1", "from 0 to"),
        ("PM_RATE_RUN_NOW", "nan", "from 0 to"),
        ("PM_RATE_RUN_NOW", "inf", "from 0 to"),
        ("PM_DISPATCH_LIMIT", "0", "from 1 to"),
        ("PM_DEADLINE_SECONDS", "0", "from 1 to"),
        ("PM_HTTP_TIMEOUT_SECONDS", "0", "from 0.1 to"),
        ("PM_CALL_TRIES", "0", "from 1 to"),
        ("PM_MAX_ATTEMPTS", "0", "from 1 to"),
        ("PM_LEASE_SECONDS", "1", "from 2 to"),
        ("PM_MISSING_RUN", "maybe", "fresh-run, fail"),
        ("PM_LIVENESS", "hope", "auto, lock, lease"),
        ("PM_QUEUE", "perhaps", "true or false"),
        ("PM_POSTGRES_AUTH", "kerberos", "password, entra"),
        ("PM_ALLOW_HTTP", "perhaps", "true or false"),
        ("PM_JOB_PARAMETERS", "RUN_ID", "PARAMETER=column"),
        ("PM_JOB_PARAMETERS", "=run_id", "PARAMETER=column"),
        ("PM_JOB_PARAMETERS", "A=", "PARAMETER=column"),
    ],
)
def test_a_bad_value_is_named_with_what_was_expected(variable: str, value: str, expected: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        settings_from({variable: value})
    assert variable in str(caught.value)
    assert repr(value) in str(caught.value)
    assert expected in str(caught.value)


def test_the_database_url_is_in_no_message() -> None:
    password = "".join(reversed("2retnuh"))
    with pytest.raises(ConfigurationError) as caught:
        settings_from({"PM_POSTGRES_URL": f"postgresql://u:{password}@h/d", "PM_QUEUE": "?"})
    assert password not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("variable", ["PM_POSTGRES_URL", "PM_POSTGRES_PASSWORD", "PGPASSWORD"])
def test_a_printed_settings_object_does_not_show_a_password(variable: str) -> None:
    assert "hunter2" not in repr(settings_from({variable: "postgresql://u:hunter2@h/d"}))


def test_libpqs_variables_are_kept_as_given() -> None:
    read = settings_from({"PGHOST": "h", "PGPASSWORD": "p", "PGPORT": "", "PGAPPNAME": "x"})
    assert read.postgres_defaults == (("PGHOST", "h"), ("PGPASSWORD", "p"))


def test_one_setting_is_read_although_another_cannot_be() -> None:
    assert read_setting({"PM_LOG_LEVEL": "debug", "PM_CALL_TRIES": "many"}, "log_level") == "debug"
    assert read_setting({}, "log_format") == "text"
    with pytest.raises(ConfigurationError, match="PM_LOG_LEVEL='loud' cannot be used: expected one of debug, info"):
        read_setting({"PM_LOG_LEVEL": "loud"}, "log_level")
