"""The waiting jobs as Spark's JDBC source reads them: the session, the read, and what its failures mean.

The statement that Spark sends is the ledger's (``ledger.waiting_rows``). On a cluster with access mode USER_ISOLATION
the session is a Spark Connect client: only what it has too is used.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pm_dagster.config.settings import Settings
from pm_dagster.dispatch.waiting_job import RawRow
from pm_dagster.errors import ConfigurationError, ControlPlaneUnavailable, ProcessManagerError
from pm_dagster.ledger.connection_strings import jdbc_options
from pm_dagster.ledger.waiting_rows import TextRead, WaitingAsText
from pm_dagster.text import error_text

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

_CLUSTER_NAME = "spark.databricks.clusterUsageTags.clusterName"
_OTHERWISE = "use --read driver, which needs no Spark"
_LIMIT = 400
#: The JDBC driver's exception within the stack traces of a JVM; Spark Connect puts its class in brackets.
_DRIVER_SAYS = re.compile(r"PSQLException[):]+\s*(.+)")
_NO_DRIVER = re.compile(r"ClassNotFoundException[):]+\s*org\.postgresql\.Driver|No suitable driver")
#: The severities of the server's own words; "canceling statement" is a time limit's or an administrator's.
_SERVER_REFUSES = re.compile(r"^ERROR: (?!canceling statement)|^FATAL: (password|role|database|no pg_hba)")


@dataclass(frozen=True)
class SparkRead:
    """The rows, oldest first, and the cluster's name, empty where Spark knows none."""

    rows: list[RawRow]
    cluster: str


def read_waiting(settings: Settings, limit: int) -> SparkRead:
    """The rows that ``ControlPlane.waiting`` gives, read by Spark.

    Args:
        settings: The database and the view.
        limit: The most rows.

    Raises:
        ConfigurationError: There is no Spark or no JDBC driver, or the database refuses Spark's read.
        ControlPlaneUnavailable: The database cannot be read now; or whatever else ``ControlPlane.waiting`` raises.
    """
    options = jdbc_options(settings)
    waiting = WaitingAsText(settings)
    try:
        # A database that is down is named at once, not after the start of Spark.
        read = waiting.read(limit)
        spark = session()
        return SparkRead(waiting.rows(read, collected(spark, options, read)), _cluster_name(spark))
    finally:
        waiting.end()


def session() -> SparkSession:
    """The session that exists, or a new one. Raises ConfigurationError when there can be none."""
    try:
        from pyspark.sql import SparkSession  # noqa: PLC0415 --read driver does without

        return SparkSession.builder.getOrCreate()
    except Exception as error:  # noqa: BLE001 classic Spark, Spark Connect, gRPC and a missing Java have no common class
        raise ConfigurationError(f"there is no Spark session ({error_text(error)[:_LIMIT]}): {_OTHERWISE}") from None


def source(spark: SparkSession, options: dict[str, str], read: TextRead) -> DataFrame:
    """The read as a DataFrame: a row's place, and then its values as text. Spark asks the database for the names."""
    reader = spark.read.format("jdbc").options(**options, query=read.query, sessionInitStatement=read.session)
    return reader.load()


def collected(spark: SparkSession, options: dict[str, str], read: TextRead) -> Sequence[Sequence[object]]:
    """The rows as tuples. Raises ConfigurationError or ControlPlaneUnavailable.

    Not by ``toPandas``, which would make floats of nullable integers.
    """
    try:
        return source(spark, options, read).collect()
    except Exception as error:  # noqa: BLE001 as above; whatever it is, nothing is sent yet
        raise our_error(str(error)) from None


def our_error(text: str) -> ProcessManagerError:
    """What a failure of Spark's read means, from its text, which may be pages long."""
    if _NO_DRIVER.search(text):
        return ConfigurationError(f"Spark has no PostgreSQL JDBC driver (org.postgresql.Driver): {_OTHERWISE}")
    found = _DRIVER_SAYS.search(text)
    what = found.group(1).strip() if found else next(iter(text.strip().splitlines()), "no reason given")
    if _SERVER_REFUSES.match(what):
        return ConfigurationError(f"the database refused Spark's read: {what[:_LIMIT]}")
    return ControlPlaneUnavailable(f"Spark could not read the waiting jobs: {what[:_LIMIT]}")


def _cluster_name(spark: SparkSession) -> str:
    """A job cluster's name holds the ids of job and run (databricks-sdk, ``ClusterSpec.cluster_name``)."""
    try:
        return spark.conf.get(_CLUSTER_NAME, "") or ""
    except Exception:  # noqa: BLE001 a session may refuse to tell; the dispatch needs no name
        return ""
