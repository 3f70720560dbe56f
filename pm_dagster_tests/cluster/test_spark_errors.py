"""What Spark's errors mean: classic Spark and Spark Connect word the same failure in their own way."""

from __future__ import annotations

import pytest

from pm_dagster.cluster.spark_read import our_error
from pm_dagster.errors import ConfigurationError, ControlPlaneUnavailable

_CLASSIC = (
    "An error occurred while calling o40.load.\n: org.postgresql.util.PSQLException: {}\n\tat org.postgresql.core.X\n"
)
_CONNECT = "(org.postgresql.util.PSQLException) {}\n\nJVM stacktrace:\norg.postgresql.util.PSQLException\n\tat ..."


@pytest.mark.parametrize("form", [_CLASSIC, _CONNECT], ids=["classic", "connect"])
@pytest.mark.parametrize(
    ("says", "kind"),
    [
        ("Connection to h:5432 refused. Check that the hostname and port are correct.", ControlPlaneUnavailable),
        ("The connection attempt failed.", ControlPlaneUnavailable),
        ("FATAL: the database system is shutting down", ControlPlaneUnavailable),
        ("ERROR: canceling statement due to statement timeout", ControlPlaneUnavailable),
        ('FATAL: password authentication failed for user "x"', ConfigurationError),
        ('FATAL: no pg_hba.conf entry for host "10.0.0.1"', ConfigurationError),
        ("ERROR: permission denied for view mm_run_wait_vw", ConfigurationError),
    ],
)
def test_the_drivers_words_decide(form: str, says: str, kind: type[Exception]) -> None:
    error = our_error(form.format(says))
    assert type(error) is kind
    assert str(error).endswith(says)


def test_a_missing_driver_says_what_to_use() -> None:
    error = our_error(
        "An error occurred while calling o1.load.\n: java.lang.ClassNotFoundException: org.postgresql.Driver\n"
    )
    assert isinstance(error, ConfigurationError)
    assert "--read driver" in str(error)


@pytest.mark.parametrize("text", ["", "\n", "x" * 10_000, "first\nsecond"])
def test_anything_else_is_one_short_line(text: str) -> None:
    error = our_error(text)
    assert isinstance(error, ControlPlaneUnavailable)
    assert "\n" not in str(error)
    assert len(str(error)) < 500
