"""An Azure Databricks workspace under its own host name: the local workspace behind TLS, with sign-in as on Azure.

It takes personal access tokens that are valid at the moment, tokens of the workspace's own OAuth server, and tokens of
Entra ID for Azure Databricks.
"""

from __future__ import annotations

import http.client

from pm_dagster.sandbox.workspace import LocalWorkspace
from pm_dagster_tests.credentials import entra_site
from pm_dagster_tests.credentials.entra_site import Entra
from pm_dagster_tests.credentials.internet import Asked, Reply

_DROPPED = ("host", "authorization", "content-length", "connection", "accept-encoding")


class WorkspaceSite:
    """``tokens`` are the personal access tokens that are valid at the moment."""

    def __init__(self, host: str, local: LocalWorkspace, entra: Entra) -> None:
        self.host, self.local, self._entra = host, local, entra
        self.tokens: set[str] = set()

    @property
    def url(self) -> str:
        """What DATABRICKS_HOST holds."""
        return f"https://{self.host}"

    def site(self, asked: Asked) -> Reply:
        """Pass a request on, and the answer back."""
        headers = {name: value for name, value in asked.headers.items() if name not in _DROPPED}
        headers["Authorization"] = self._authorization(asked)
        connection = http.client.HTTPConnection("127.0.0.1", self.local.port, timeout=60)
        try:
            connection.request(asked.method, asked.target, asked.body, headers)
            answer = connection.getresponse()
            body = answer.read().replace(self.local.host.encode(), self.url.encode())
        finally:
            connection.close()
        kept = {name: value for name, value in answer.getheaders() if name.lower() in ("content-type", "retry-after")}
        return Reply(answer.status, body, kept)

    def _authorization(self, asked: Asked) -> str:
        token = asked.bearer
        if token in self.tokens or self._entra.accepts(token, entra_site.DATABRICKS):
            return f"Bearer {self.local.token}"
        # The local workspace's own token is known to nobody out here.
        return "Bearer refused" if token == self.local.token else asked.headers.get("authorization", "")
