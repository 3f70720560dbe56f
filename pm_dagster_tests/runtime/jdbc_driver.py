"""Brings the PostgreSQL JDBC driver from Maven Central, by Spark's own way (Ivy), and checks that it is the right one.

``python -m pm_dagster_tests.runtime.jdbc_driver``, quick when it is there. Put here: getting the driver. Keep out: use.
"""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
import warnings
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

from cryptography import x509
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, pkcs12

from pm_dagster_tests.runtime.place import COORDINATES, IVY, JAR, JAR_SHA256, JAVA_HOME, PYTHON

#: Java's own; the file holds public certificates.
_PASSWORD = "changeit"
_RESOLVE = "from pyspark.java_gateway import launch_gateway; launch_gateway()"


def is_there() -> bool:
    """Whether the driver is there, byte by byte."""
    return JAR.is_file() and sha256(JAR.read_bytes()).hexdigest() == JAR_SHA256


def main() -> None:
    """Bring it. Ends the process with a message when that fails."""
    if not is_there():
        _bring()
    if not is_there():
        sys.exit(f"{JAR} is not the driver that the tests were written for: its SHA-256 is not {JAR_SHA256}")


def _bring() -> None:
    with TemporaryDirectory() as folder:
        options = f"--packages {COORDINATES} --conf spark.jars.ivy={IVY} --master local[1] pyspark-shell"
        environment = {
            **os.environ,
            "JAVA_HOME": str(JAVA_HOME),
            "PYSPARK_SUBMIT_ARGS": options,
            "SPARK_LOCAL_IP": "127.0.0.1",
            "SPARK_SUBMIT_OPTS": _trust(Path(folder) / "trust.p12"),
        }
        done = subprocess.run(
            [str(PYTHON), "-c", _RESOLVE], env=environment, capture_output=True, text=True, check=False, timeout=300
        )
    if done.returncode:
        sys.exit(f"Spark could not bring {COORDINATES} from Maven Central:\n{done.stderr[-3000:]}")


def _trust(store: Path) -> str:
    """Java's options to trust whom this machine trusts: the wheel's Java brings a list of its own."""
    certificates = [pkcs12.PKCS12Certificate(each, None) for each in _authorities()]
    if not certificates:
        return ""
    encryption = BestAvailableEncryption(_PASSWORD.encode())
    store.write_bytes(pkcs12.serialize_java_truststore(certificates, encryption))
    return f"-Djavax.net.ssl.trustStore={store} -Djavax.net.ssl.trustStorePassword={_PASSWORD}"


def _authorities() -> list[x509.Certificate]:
    found = []
    with warnings.catch_warnings():
        # A few old authorities break rules that the library warns of, and will refuse one day.
        warnings.simplefilter("ignore")
        for certificate in ssl.create_default_context().get_ca_certs(binary_form=True):
            try:
                found.append(x509.load_der_x509_certificate(certificate))
            except ValueError:
                continue
    return found


if __name__ == "__main__":
    main()
