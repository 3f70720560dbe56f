"""The calls on secrets: scopes create, list, delete; put, list, get, delete.

Put here: request in, reply out. Keep out: keeping secrets (``secret_scopes.py``). Meaning and error codes:
https://docs.databricks.com/api/workspace/secrets. Access control lists of scopes are not kept.
"""

from __future__ import annotations

import base64
import binascii

from pm_dagster.sandbox.workspace.call import Call, Reply
from pm_dagster.sandbox.workspace.errors import invalid, malformed
from pm_dagster.sandbox.workspace.secret_scopes import SecretScopes
from pm_dagster.sandbox.workspace.views import millis


class SecretsApi:
    """The handlers over the scopes of one workspace."""

    def __init__(self, scopes: SecretScopes) -> None:
        self._scopes = scopes

    def make_scope(self, call: Call) -> Reply:
        """Make a scope that Databricks keeps."""
        if call.text("scope_backend_type") == "AZURE_KEYVAULT":
            raise invalid("The local workspace keeps secrets itself; it cannot reach a key vault.")
        self._scopes.make_scope(_required(call, "scope"))
        return Reply(effect=True)

    def list_scopes(self, _: Call) -> Reply:
        """All scopes."""
        found = [{"name": name, "backend_type": "DATABRICKS"} for name in self._scopes.scopes()]
        return Reply({"scopes": found} if found else {})

    def delete_scope(self, call: Call) -> Reply:
        """Remove a scope."""
        self._scopes.delete_scope(_required(call, "scope"))
        return Reply(effect=True)

    def put(self, call: Call) -> Reply:
        """Store a secret in a scope that exists."""
        self._scopes.put(_required(call, "scope"), _required(call, "key"), _value(call), make_scope=False)
        return Reply(effect=True)

    def list_keys(self, call: Call) -> Reply:
        """The keys of a scope."""
        stamps = self._scopes.stamps(_required(call, "scope"))
        found = [{"key": key, "last_updated_timestamp": millis(changed)} for key, changed in stamps]
        return Reply({"secrets": found} if found else {})

    def get(self, call: Call) -> Reply:
        """One secret, in base64."""
        key = _required(call, "key")
        value = self._scopes.get_bytes(_required(call, "scope"), key)
        return Reply({"key": key, "value": base64.b64encode(value).decode()})

    def delete(self, call: Call) -> Reply:
        """Remove a secret."""
        self._scopes.delete(_required(call, "scope"), _required(call, "key"))
        return Reply(effect=True)


def _required(call: Call, name: str) -> str:
    value = call.text(name)
    if not value:
        raise invalid(f"Missing required field: {name}")
    return value


def _value(call: Call) -> bytes:
    text, encoded = call.text("string_value"), call.text("bytes_value")
    if (text is None) == (encoded is None):
        raise invalid("Exactly one of string_value and bytes_value is needed.")
    try:
        return base64.b64decode(encoded, validate=True) if encoded is not None else (text or "").encode()
    except (binascii.Error, ValueError):
        raise malformed("Expected base64 for field bytes_value, text for field string_value.") from None
