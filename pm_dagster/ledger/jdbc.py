"""The database as Spark's JDBC source takes it.

Put here: the JDBC URL and properties for the settings. Keep out: what is read through them.
"""

from __future__ import annotations

from urllib.parse import quote, urlencode

from pm_dagster.config.settings import Settings
from pm_dagster.errors import ConfigurationError
from pm_dagster.ledger.parameters import RENAMED, SYSTEM_ROOTS, parameters

_DRIVER = "org.postgresql.Driver"
_SAME = ("sslmode", "sslrootcert", "sslcert", "sslkey", "options")
_TARGETS = {
    "read-write": "primary",
    "primary": "primary",
    "read-only": "secondary",
    "standby": "secondary",
    "prefer-standby": "preferSecondary",
}
_TCP_ONLY = "JDBC speaks TCP only: set PM_POSTGRES_HOST, or read with --read driver"


def jdbc_options(settings: Settings) -> dict[str, str]:
    """``url``, ``driver`` and, where known, ``user`` and ``password`` for ``spark.read.format("jdbc").options``.

    The same database as ``connect`` opens; no credential is in the URL, which Spark shows in its plans. Raises
    ConfigurationError when only a Unix socket is known or the URL cannot be used, Unavailable when Entra ID does not
    answer.
    """
    found = parameters(settings)
    query = {"ApplicationName": "process_manager", "connectTimeout": "10", "tcpKeepAlive": "true"}
    query |= {name: found[name] for name in _SAME if name in found}
    query |= {ours: found[name] for ours, (name, _) in RENAMED.items() if name in found}
    if found.get("target_session_attrs", "any") != "any":
        query["targetServerType"] = _TARGETS.get(found["target_session_attrs"], found["target_session_attrs"])
    if found.get("load_balance_hosts") == "random":
        query["loadBalanceHosts"] = "true"
    if query.get("sslrootcert") == "system":
        # To the driver this would be a file.
        del query["sslrootcert"]
        query["sslfactory"] = SYSTEM_ROOTS
    database = quote(found.get("dbname", ""), safe="")
    options = {"url": f"jdbc:postgresql://{_addresses(found)}/{database}?{urlencode(query)}", "driver": _DRIVER}
    return options | {name: found[name] for name in ("user", "password", "sslpassword") if name in found}


def _addresses(found: dict[str, str]) -> str:
    hosts = (found.get("host") or found.get("hostaddr") or "").split(",")
    ports = found.get("port", "").split(",")
    ports = ports * len(hosts) if len(ports) == 1 else ports
    if len(ports) != len(hosts):
        raise ConfigurationError(f"the database has {len(hosts)} hosts but {len(ports)} ports: correct PM_POSTGRES_*")
    return ",".join(_address(host, port or "5432") for host, port in zip(hosts, ports, strict=True))


def _address(host: str, port: str) -> str:
    if not host:
        raise ConfigurationError(f"no host of the database is set: {_TCP_ONLY}")
    if host.startswith(("/", "@")):
        raise ConfigurationError(f"the database host {host} is a Unix socket: {_TCP_ONLY}")
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
