"""Which database, as whom: the settings as libpq's connection parameters.

Put here: how URL, parts and libpq's variables become one set of parameters. Keep out: connecting (``connection.py``)
and Spark's form of the same (``jdbc.py``).
"""

from __future__ import annotations

from urllib.parse import parse_qsl, unquote_plus

import psycopg2
from psycopg2.extensions import parse_dsn

from pm_dagster import entra
from pm_dagster.core.errors import ConfigurationError
from pm_dagster.core.settings import LIBPQ_VARIABLES, Settings

_JDBC = "jdbc:postgresql:"
#: Azure Database for PostgreSQL refuses connections without TLS unless its owner allows them; in each cloud:
#: https://learn.microsoft.com/en-us/azure/postgresql/network/concepts-networking-ssl-tls
_AZURE = (
    ".postgres.database.azure.com",
    ".postgres.database.usgovcloudapi.net",
    ".postgres.database.chinacloudapi.cn",
)
#: Properties of the JDBC driver that libpq knows by the same name and meaning.
_SAME = ("user", "password", "sslmode", "sslrootcert", "sslcert", "sslkey", "options")
_UNUSABLE = (
    "PM_POSTGRES_URL is neither a libpq connection URL or string nor a jdbc:postgresql://HOST:PORT/DATABASE URL"
    " (its value is not shown)"
)


def parameters(settings: Settings) -> dict[str, str]:
    """Everything that is known of the connection before libpq adds its defaults, an Entra ID token included.

    The parts come first, then the URL, then libpq's own variables. Raises ConfigurationError for a URL that cannot be
    used or an identity that gets no token, Unavailable when Entra ID does not answer.
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
    found |= _from_url(settings.postgres_url)
    found |= {name: value for name, value in parts.items() if value}
    if "sslmode" not in found and "service" not in found and _on_azure(found.get("host", "")):
        found["sslmode"] = "require"
    if settings.postgres_auth == "entra":
        found["password"] = entra.token(entra.POSTGRES_SCOPE, "PM_POSTGRES_AUTH=entra")
    return found


def _on_azure(hosts: str) -> bool:
    return any(host.strip().lower().rstrip(".").endswith(_AZURE) for host in hosts.split(","))


def _from_url(url: str) -> dict[str, str]:
    if url.startswith(_JDBC):
        return _from_jdbc(url.removeprefix(_JDBC))
    try:
        return {name: str(value) for name, value in parse_dsn(url).items()}
    except (psycopg2.Error, ValueError, UnicodeError):
        # The driver's text can hold parts of the URL, and with them the password.
        raise ConfigurationError(_UNUSABLE) from None


def _from_jdbc(rest: str) -> dict[str, str]:
    """Read it as the JDBC driver does: https://jdbc.postgresql.org/documentation/use/#connecting-to-the-database."""
    where, _, query = rest.partition("?")
    authority, _, database = where[2:].partition("/") if where.startswith("//") else ("", "", where.lstrip("/"))
    if "@" in authority or "/" in database:
        raise ConfigurationError(_UNUSABLE)
    addresses = [_address(address) for address in authority.split(",")]
    properties = dict(parse_qsl(query, keep_blank_values=True))
    found = {
        "host": ",".join(host for host, _ in addresses),
        "port": ",".join(port for _, port in addresses),
        "dbname": unquote_plus(database),
        **{name: properties[name] for name in _SAME if name in properties},
        "sslmode": _sslmode(properties),
    }
    return {name: value for name, value in found.items() if value}


def _address(text: str) -> tuple[str, str]:
    host, colon, port = text.rpartition(":")
    if not colon or "]" in port:
        host, port = text, "5432"
    if not port.isdigit():
        raise ConfigurationError(_UNUSABLE)
    return host.strip("[]") or "localhost", port


def _sslmode(properties: dict[str, str]) -> str:
    """The driver verifies the server with a bare ``ssl=true``, unless told not to by its factory."""
    if properties.get("sslmode"):
        return properties["sslmode"]
    if properties.get("ssl", "false").lower() not in ("", "true"):
        return ""
    return "require" if properties.get("sslfactory", "").endswith(".NonValidatingFactory") else "verify-full"
