"""A workspace client from the SDK's own environment variables, for the command line and the cluster.

Under Dagster the client comes from dagster-databricks' resource instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

from databricks.sdk import WorkspaceClient
from databricks.sdk.core import Config

from pm_dagster.core.errors import ConfigurationError
from pm_dagster.core.settings import Settings
from pm_dagster.workspace.scrub import scrubbed


def check_host(host: str | None) -> None:
    """Raise ConfigurationError for a host that the SDK would take as it is and fail with on every call."""
    if not host:
        message = "no workspace is configured: set DATABRICKS_HOST (and DATABRICKS_TOKEN or other DATABRICKS_*/ARM_*)"
        raise ConfigurationError(message)
    if not _is_scheme_and_host(host if "://" in host else f"https://{host}"):
        shown = "(its value is not shown)" if "@" in host else host
        message = f"DATABRICKS_HOST must be scheme and host only, such as https://adb-1.2.azuredatabricks.net: {shown}"
        raise ConfigurationError(message)


def _is_scheme_and_host(url: str) -> bool:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        return False
    return bool(usable) and not (parts.query or parts.fragment or parts.path.strip("/") or "@" in parts.netloc)


def workspace_client(environment: Mapping[str, str], settings: Settings) -> WorkspaceClient:
    """A client as the SDK configures it from the process environment; makes no call for a personal access token.

    Raises ConfigurationError when host or credentials are missing or contradict each other.
    """
    check_host(environment.get("DATABRICKS_HOST") or None)
    try:
        config = Config(http_timeout_seconds=settings.http_timeout_seconds, retry_timeout_seconds=1)
        return WorkspaceClient(config=config)
    except Exception as error:  # noqa: BLE001 credential providers raise what they like
        secrets = [value for name, value in environment.items() if "SECRET" in name or "TOKEN" in name]
        first_line = scrubbed(str(error), secrets).splitlines()[0][:500]
        message = f"the workspace credentials cannot be used: {first_line}"
        raise ConfigurationError(message) from None
