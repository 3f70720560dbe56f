"""Which database, as whom: the settings as libpq's connection parameters.

Put here: how URL, parts and libpq's variables become one set of parameters. Keep out: connecting (``connection.py``)
and Spark's form of the same (``jdbc.py``).
"""

from __future__ import annotations

from urllib.parse import parse_qsl, unquote_plus

import psycopg2
from psycopg2.extensions import parse_dsn

from pm_dagster import entra
from pm_dagster.core.errors import ConfigurationError, Unavailable
from pm_dagster.core.settings import LIBPQ_VARIABLES, Settings

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
_SAME = ("user", "password", "sslmode", "sslrootcert", "sslcert", "sslkey", "options")
#: The names by which libpq reaches this machine.
LOOPBACK = ("localhost", "127.0.0.1", "::1")
_LAST_PORT = 65_535
_UNUSABLE = (
    "PM_POSTGRES_URL is neither a libpq connection URL or string nor a jdbc:postgresql://HOST:PORT/DATABASE URL"
    " (its value is not shown); in a URL, write @ : / and % of a password as %40 %3A %2F and %25"
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
