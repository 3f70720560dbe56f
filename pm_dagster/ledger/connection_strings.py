"""Which database, as whom: the settings as libpq's connection parameters, and the same for Spark's JDBC source.

A URL may be libpq's or JDBC's. URL, single settings and libpq's own variables become one set of libpq parameters, which
``connection`` connects with, and from which the JDBC URL is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import parse_qsl, quote, unquote_plus, urlencode

import psycopg2
from psycopg2.extensions import libpq_version, parse_dsn

from pm_dagster.config import entra
from pm_dagster.config.settings import LIBPQ_VARIABLES, Settings
from pm_dagster.errors import ConfigurationError, Unavailable

_JDBC = "jdbc:postgresql:"
#: Azure Database for PostgreSQL in each cloud, and the scope of the tokens that it takes for passwords. It refuses
#: connections without TLS unless its owner allows them:
#: https://learn.microsoft.com/en-us/azure/postgresql/network/concepts-networking-ssl-tls
#: https://learn.microsoft.com/en-us/azure/postgresql/security/security-entra-configure
#: https://github.com/Azure/azure-cli/blob/dev/src/azure-cli-core/azure/cli/core/cloud.py (ossrdbms_resource_id)
_AZURE = {
    ".postgres.database.azure.com": "https://ossrdbms-aad.database.windows.net/.default",
    ".postgres.database.usgovcloudapi.net": "https://ossrdbms-aad.database.usgovcloudapi.net/.default",
    ".postgres.database.chinacloudapi.cn": "https://ossrdbms-aad.database.chinacloudapi.cn/.default",
}
_PUBLIC_CLOUD = _AZURE[".postgres.database.azure.com"]
#: Properties of the JDBC driver that libpq knows by the same name and meaning.
_SAME_NAME = ("user", "password", "sslmode", "sslrootcert", "sslcert", "sslkey", "sslpassword", "service")
#: Those that it knows by another name, with the first version of libpq that does.
_RENAMED = {
    "gssEncMode": ("gssencmode", 12),
    "channelBinding": ("channel_binding", 13),
    "sslNegotiation": ("sslnegotiation", 17),
    "kerberosServerName": ("krbsrvname", 10),
}
#: Which of several servers is meant, in the words of the JDBC driver and of libpq. The driver calls primary what takes
#: writes, which is what read-write means; to a primary that it only prefers it would not be a dispatch without one.
#: https://jdbc.postgresql.org/documentation/use/#connection-parameters
#: https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-CONNECT-TARGET-SESSION-ATTRS
_SERVER_TYPES = {
    "any": "any",
    "primary": "read-write",
    "master": "read-write",
    "preferPrimary": "read-write",
    "secondary": "read-only",
    "slave": "read-only",
    "preferSecondary": "prefer-standby",
    "preferSlave": "prefer-standby",
}
#: libpq knows of standbys since 14, and chooses among hosts at random since 16.
_KNOWS_STANDBYS, _LOADS_EVENLY, _KNOWS_SYSTEM_ROOTS = 14, 16, 16
#: A factory with which the driver trusts what the machine trusts.
_SYSTEM_ROOTS = "org.postgresql.ssl.DefaultJavaSSLFactory"
_LIBPQ = libpq_version() // 10_000
#: The names by which libpq reaches this machine.
LOOPBACK = ("localhost", "127.0.0.1", "::1")
_LAST_PORT = 65_535
_UNUSABLE = (
    "PM_POSTGRES_URL is neither a libpq connection URL or string nor a jdbc:postgresql://HOST:PORT/DATABASE URL"
    " (its value is not shown); in a URL, write @ : / and % of a password as %40 %3A %2F and %25"
)


def connection_parameters(settings: Settings) -> dict[str, str]:
    """The parameters of libpq as far as our settings know them, an Entra ID token included; libpq adds its defaults.

    A single setting (PM_POSTGRES_HOST ...) takes precedence over the URL, the URL over libpq's own variables.

    Raises:
        ConfigurationError: The URL cannot be used, or the identity gets no token.
        Unavailable: Entra ID does not answer.
    """
    parts = {
        "host": settings.postgres_host,
        "port": settings.postgres_port,
        "dbname": settings.postgres_database,
        "user": settings.postgres_user,
        "password": settings.postgres_password,
        "sslmode": settings.postgres_sslmode,
    }
    found = {LIBPQ_VARIABLES[name]: value for name, value in settings.postgres_defaults}
    found |= url_parameters(settings.postgres_url)
    if settings.postgres_host:
        # Another host than the URL's is at another address, and may have fewer ports to choose from.
        found.pop("hostaddr", None)
        if found.get("port", "").count(",") > settings.postgres_host.count(","):
            del found["port"]
    found |= {name: value for name, value in parts.items() if value}
    if not _are_ports(settings.postgres_port):
        raise ConfigurationError(f"PM_POSTGRES_PORT={settings.postgres_port!r} cannot be used: expected a port number")
    scope = _scope_of(found.get("host", ""))
    entra_id = settings.postgres_auth == "entra"
    # A token goes over as it is: in libpq's own mode, whoever stands between could ask for it without TLS.
    if (scope or entra_id) and "sslmode" not in found and "service" not in found and not _is_here(found):
        found["sslmode"] = "require"
    if entra_id:
        found["password"] = _token(scope or _PUBLIC_CLOUD)
    return found


def _is_here(found: dict[str, str]) -> bool:
    """True when the database is reached by a socket file or a loopback address."""
    hosts = (found.get("host") or "").split(",")
    return all(not host or host.startswith(("/", "@")) or host in LOOPBACK for host in hosts)


def _scope_of(hosts: str) -> str | None:
    """The scope of tokens for these hosts if they are Azure's."""
    names = [host.strip().lower().rstrip(".") for host in hosts.split(",")]
    return next((scope for suffix, scope in _AZURE.items() if any(name.endswith(suffix) for name in names)), None)


def _token(scope: str) -> str:
    try:
        return entra.token(scope)
    except (ConfigurationError, Unavailable) as error:
        raise type(error)(f"PM_POSTGRES_AUTH=entra: {error}") from None


def url_parameters(url: str) -> dict[str, str]:
    """What a libpq URL, a key=value string or a JDBC URL says. Raises ConfigurationError without the value."""
    if url.startswith(_JDBC):
        return _from_jdbc(url.removeprefix(_JDBC))
    try:
        found = {name: str(value) for name, value in parse_dsn(url).items()}
    except (psycopg2.Error, ValueError, UnicodeError):
        # The driver's text can hold parts of the URL, and with them the password.
        raise ConfigurationError(_UNUSABLE) from None
    # A password with an @ or / that is not escaped ends up in part as host or port, which errors show.
    if "@" in found.get("host", "")[1:] or not _are_ports(found.get("port", "")):
        raise ConfigurationError(_UNUSABLE)
    return found


def _are_ports(text: str) -> bool:
    return all(not port or (port.isascii() and port.isdigit() and int(port) <= _LAST_PORT) for port in text.split(","))


def _from_jdbc(rest: str) -> dict[str, str]:
    """Read it as the JDBC driver does: https://jdbc.postgresql.org/documentation/use/#connecting-to-the-database."""
    where, _, query = rest.partition("?")
    authority, _, database = where[2:].partition("/") if where.startswith("//") else ("", "", where.lstrip("/"))
    if "@" in authority or "/" in database:
        raise ConfigurationError(_UNUSABLE)
    addresses = [_host_and_port(address) for address in authority.split(",")]
    properties = dict(parse_qsl(query, keep_blank_values=True))
    if properties.get("socketFactory"):
        raise ConfigurationError(
            "PM_POSTGRES_URL names a socketFactory, which only Java can follow: give the address that it leads to"
        )
    # A service brings an address of its own.
    place = {
        "host": ",".join(host for host, _ in addresses),
        "port": ",".join(port for _, port in addresses),
    }
    found = {
        **({} if properties.get("service") and not authority else place),
        "dbname": unquote_plus(database),
        **{name: properties[name] for name in _SAME_NAME if name in properties},
        **{
            theirs: properties[name]
            for name, (theirs, since) in _RENAMED.items()
            if name in properties and since <= _LIBPQ
        },
        "sslmode": _sslmode(properties),
        "options": _options(properties),
        **_which_server(properties),
    }
    if properties.get("sslfactory") == _SYSTEM_ROOTS and found["sslmode"] == "verify-full":
        found.setdefault("sslrootcert", "system" if _LIBPQ >= _KNOWS_SYSTEM_ROOTS else "")
    return {name: value for name, value in found.items() if value}


def _options(properties: Mapping[str, str]) -> str:
    """What the server is told at the start: the driver has properties for what libpq only has options for."""
    told = [properties.get("options", "")]
    if properties.get("currentSchema"):
        path = properties["currentSchema"].replace("\\", "\\\\").replace(" ", "\\ ")
        told.append(f"-c search_path={path}")
    if properties.get("readOnly", "false").lower() in ("", "true"):
        told.append("-c default_transaction_read_only=on")
    return " ".join(each for each in told if each)


def _which_server(properties: Mapping[str, str]) -> dict[str, str]:
    """Which of several servers is to be taken, and in which order they are tried."""
    found = {}
    wanted = properties.get("targetServerType", "any")
    target = _SERVER_TYPES.get(wanted)
    if target is None:
        raise ConfigurationError(f"PM_POSTGRES_URL: targetServerType is none of {', '.join(_SERVER_TYPES)}")
    if target not in ("any", "read-write") and _LIBPQ < _KNOWS_STANDBYS:
        raise ConfigurationError(
            f"PM_POSTGRES_URL: targetServerType={wanted} needs libpq 14 or newer; this process has {_LIBPQ}"
        )
    if target != "any":
        found["target_session_attrs"] = target
    # Only an order of trying, so no loss where libpq does not know it.
    if properties.get("loadBalanceHosts", "false").lower() in ("", "true") and _LIBPQ >= _LOADS_EVENLY:
        found["load_balance_hosts"] = "random"
    return found


def _host_and_port(text: str) -> tuple[str, str]:
    host, colon, port = text.rpartition(":")
    if not colon or "]" in port:
        host, port = text, "5432"
    if not port.isdigit():
        raise ConfigurationError(_UNUSABLE)
    return host.strip("[]") or "localhost", port


def _sslmode(properties: Mapping[str, str]) -> str:
    """The driver verifies the server with a bare ``ssl=true``, unless told not to by its factory."""
    if properties.get("sslmode"):
        return properties["sslmode"]
    if properties.get("ssl", "false").lower() not in ("", "true"):
        return ""
    return "require" if properties.get("sslfactory", "").endswith(".NonValidatingFactory") else "verify-full"


_DRIVER = "org.postgresql.Driver"
_SAME_IN_SPARK = ("sslmode", "sslrootcert", "sslcert", "sslkey", "options")
_JDBC_SERVER_TYPES = {
    "read-write": "primary",
    "primary": "primary",
    "read-only": "secondary",
    "standby": "secondary",
    "prefer-standby": "preferSecondary",
}
_TCP_ONLY = "JDBC speaks TCP only: set PM_POSTGRES_HOST, or read with --read driver"


def jdbc_options(settings: Settings) -> dict[str, str]:
    """``url``, ``driver`` and, where known, ``user`` and ``password`` for ``spark.read.format("jdbc").options``.

    The same database as ``connect`` opens. No credential is in the URL, because Spark shows it in its plans.

    Raises:
        ConfigurationError: Only a Unix socket is known, or the URL cannot be used.
        Unavailable: Entra ID does not answer.
    """
    found = connection_parameters(settings)
    query = {"ApplicationName": "process_manager", "connectTimeout": "10", "tcpKeepAlive": "true"}
    query |= {name: found[name] for name in _SAME_IN_SPARK if name in found}
    query |= {ours: found[name] for ours, (name, _) in _RENAMED.items() if name in found}
    if found.get("target_session_attrs", "any") != "any":
        query["targetServerType"] = _JDBC_SERVER_TYPES.get(found["target_session_attrs"], found["target_session_attrs"])
    if found.get("load_balance_hosts") == "random":
        query["loadBalanceHosts"] = "true"
    if query.get("sslrootcert") == "system":
        # To the driver this would be a file.
        del query["sslrootcert"]
        query["sslfactory"] = _SYSTEM_ROOTS
    database = quote(found.get("dbname", ""), safe="")
    options = {"url": f"jdbc:postgresql://{_jdbc_hosts(found)}/{database}?{urlencode(query)}", "driver": _DRIVER}
    return options | {name: found[name] for name in ("user", "password", "sslpassword") if name in found}


def _jdbc_hosts(found: dict[str, str]) -> str:
    hosts = (found.get("host") or found.get("hostaddr") or "").split(",")
    ports = found.get("port", "").split(",")
    ports = ports * len(hosts) if len(ports) == 1 else ports
    if len(ports) != len(hosts):
        raise ConfigurationError(f"the database has {len(hosts)} hosts but {len(ports)} ports: correct PM_POSTGRES_*")
    return ",".join(_jdbc_host(host, port or "5432") for host, port in zip(hosts, ports, strict=True))


def _jdbc_host(host: str, port: str) -> str:
    if not host:
        raise ConfigurationError(f"no host of the database is set: {_TCP_ONLY}")
    if host.startswith(("/", "@")):
        raise ConfigurationError(f"the database host {host} is a Unix socket: {_TCP_ONLY}")
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
