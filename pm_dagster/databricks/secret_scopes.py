"""The secret scopes of the workspace, for reading.

Two calls: https://docs.databricks.com/api/azure/workspace/secrets. A scope that Azure Key Vault backs answers to the
same calls.
"""

from __future__ import annotations

import base64
import binascii

from databricks.sdk.core import Config

from pm_dagster.databricks.transport import OneAttempt
from pm_dagster.errors import WorkspaceUnavailable


class SecretScopes:
    """Reads secrets with the credentials of ``config``; each call is one HTTP attempt and raises as ``OneAttempt``."""

    def __init__(self, config: Config, timeout: float) -> None:
        self._http = OneAttempt(config, timeout)

    def get(self, scope: str, key: str) -> bytes:
        """The value of a secret. Raises Refused (``gone``) when there is no such scope or key."""
        answer = self._http.do("GET", "/api/2.0/secrets/get", query={"scope": scope, "key": key})
        try:
            return base64.b64decode(answer["value"], validate=True)
        except (KeyError, TypeError, binascii.Error, ValueError):
            raise WorkspaceUnavailable("the workspace answered secrets/get without a value in base64") from None

    def keys(self, scope: str) -> set[str]:
        """The names of the secrets in a scope. Raises Refused (``gone``) when there is no such scope."""
        answer = self._http.do("GET", "/api/2.0/secrets/list", query={"scope": scope})
        return {str(secret["key"]) for secret in answer.get("secrets", ()) if "key" in secret}
