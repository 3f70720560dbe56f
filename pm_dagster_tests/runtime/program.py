"""The cluster entry under the runtime's libraries, from the uploaded files alone, with or without Spark.

Put here: what several tests do. Keep out: expectations.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from pm_dagster_tests.cli.shell import JOB
from pm_dagster_tests.cluster.program import ClusterProgram
from pm_dagster_tests.runtime.place import JAR, JAVA_HOME

READS = Path(__file__).with_name("reads.py")
_OPTIONS = (
    "--master local[1]",
    "--conf spark.ui.enabled=false",
    "--conf spark.driver.bindAddress=127.0.0.1",
    # Neither Spark's zone nor Java's may reach the rows.
    "--conf spark.sql.session.timeZone=Asia/Kathmandu",
    "--conf spark.driver.extraJavaOptions=-Duser.timezone=America/St_Johns",
)


@dataclass
class RuntimeProgram(ClusterProgram):
    """Spark is set by the environment, as on a cluster, never by the entry."""

    @property
    def password(self) -> str:
        """The database's."""
        password = urlsplit(self.database_url).password
        assert password
        return password

    def environment(self, **more: str) -> dict[str, str]:
        """As for any process, but nothing of the environment that runs the tests leads to its libraries."""
        variables = super().environment(**{**spark(), **more})
        return {name: value for name, value in variables.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}

    def add_many(self, runs: Sequence[int | None]) -> None:
        """A waiting row for each earlier run; None: it had none."""
        self.sql(
            "INSERT INTO mm_run_plc (run_sttus_name, wkf_job_id, wkf_job_run_id, file_name, rgstr_file_time)"
            " SELECT 'WAITING', %s, run, 'file.csv', now() FROM unnest(%s::bigint[]) AS run",
            (JOB, list(runs)),
        )

    def run_by_jdbc(self, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Run the entry as the deployed job does."""
        return self.wait_for(self.start(*arguments, **more))

    def reads(self, *options: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Run ``reads.py`` on the uploaded files."""
        command = [self.python, str(READS), str(self.entry.parents[2]), *options]
        environment = self.environment(**more)
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)


def spark(*options: str, jars: bool = True) -> dict[str, str]:
    """The variables that make pyspark start the wheel's Java on loopback, with the JDBC driver."""
    more = [f"--jars {JAR}"] if jars else []
    return {
        "JAVA_HOME": str(JAVA_HOME),
        "PATH": f"{JAVA_HOME / 'bin'}:{os.environ['PATH']}",
        "SPARK_LOCAL_IP": "127.0.0.1",
        "PYSPARK_SUBMIT_ARGS": " ".join([*_OPTIONS, *more, *options, "pyspark-shell"]),
    }
