"""The secret scopes of the workspace, and the calls of the Secrets API on them."""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

from pm_dagster.sandbox.workspace.call import Call, Reply
from pm_dagster.sandbox.workspace.errors import ApiError, invalid, malformed
from pm_dagster.sandbox.workspace.views import millis

# https://docs.databricks.com/api/workspace/secrets: names and sizes.
_NAME = re.compile(r"[A-Za-z0-9._@-]{1,128}")
_LARGEST_VALUE = 128 * 1024


class SecretScopes:
    """Secrets by scope and key. A refusal never holds a value."""

    def __init__(self, file: Path, clock: Callable[[], float] = time.time) -> None:
        self._file, self._clock = file, clock
        self._lock = threading.Lock()
        self._scopes: dict[str, dict[str, tuple[bytes, float]]] = _load(file)

    def put(self, scope: str, key: str, value: str | bytes, *, make_scope: bool = True) -> None:
        """Store a secret, and its scope if need be.

        Raises:
            ApiError: 404 when the scope is missing and not to be made; 400 for a name or a value that cannot be.
        """
        raw = value.encode() if isinstance(value, str) else value
        _check(scope, key)
        if len(raw) > _LARGEST_VALUE:
            raise invalid(f"The value of secret {key} has {len(raw)} bytes; at most {_LARGEST_VALUE} are possible.")
        with self._lock:
            if not make_scope:
                self._keys_of(scope)
            self._scopes.setdefault(scope, {})[key] = raw, self._clock()
            self._save()

    def get(self, scope: str, key: str) -> str:
        """The value as text. Raises ApiError 404 RESOURCE_DOES_NOT_EXIST, naming scope and key, as ``get_bytes``."""
        try:
            return self.get_bytes(scope, key).decode()
        except UnicodeDecodeError:
            raise invalid(f"Secret {key} of scope {scope} is not text.") from None

    def get_bytes(self, scope: str, key: str) -> bytes:
        """The value as it was put."""
        with self._lock:
            found = self._keys_of(scope, f" (asked for key {key})").get(key)
        if found is None:
            raise _absent(f"Secret does not exist with scope: {scope} and key: {key}")
        return found[0]

    def scopes(self) -> list[str]:
        """The names of all scopes."""
        with self._lock:
            return sorted(self._scopes)

    def keys(self, scope: str) -> list[str]:
        """The keys of a scope."""
        return [key for key, _ in self.stamps(scope)]

    def stamps(self, scope: str) -> list[tuple[str, float]]:
        """The keys of a scope, each with the time of its last change in epoch seconds."""
        with self._lock:
            return sorted((key, changed) for key, (_, changed) in self._keys_of(scope).items())

    def make_scope(self, scope: str) -> None:
        """Make an empty scope. Raises ApiError 400 RESOURCE_ALREADY_EXISTS."""
        _check(scope)
        with self._lock:
            if scope in self._scopes:
                raise ApiError(400, "RESOURCE_ALREADY_EXISTS", f"Scope {scope} already exists!")
            self._scopes[scope] = {}
            self._save()

    def delete_scope(self, scope: str) -> None:
        """Remove a scope with all in it."""
        with self._lock:
            self._keys_of(scope)
            del self._scopes[scope]
            self._save()

    def delete(self, scope: str, key: str) -> None:
        """Remove one secret."""
        with self._lock:
            if self._keys_of(scope).pop(key, None) is None:
                raise _absent(f"Secret does not exist with scope: {scope} and key: {key}")
            self._save()

    def clear(self) -> None:
        """Forget all scopes."""
        with self._lock:
            self._scopes.clear()
            self._save()

    def _keys_of(self, scope: str, why: str = "") -> dict[str, tuple[bytes, float]]:
        if scope not in self._scopes:
            raise _absent(f"Scope {scope} does not exist!{why}")
        return self._scopes[scope]

    def _save(self) -> None:
        records = {
            scope: {key: [base64.b64encode(raw).decode(), changed] for key, (raw, changed) in keys.items()}
            for scope, keys in self._scopes.items()
        }
        fresh = self._file.with_name(self._file.name + ".new")
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as stream:
            json.dump(records, stream)
        fresh.replace(self._file)


def _load(file: Path) -> dict[str, dict[str, tuple[bytes, float]]]:
    if not file.exists():
        return {}
    records = json.loads(file.read_text())
    return {
        scope: {key: (base64.b64decode(raw), changed) for key, (raw, changed) in keys.items()}
        for scope, keys in records.items()
    }


def _check(*names: str) -> None:
    for name in names:
        if not _NAME.fullmatch(name):
            raise invalid("A scope or key has 1 to 128 of: letters, digits, '-', '_', '.', '@'.")


def _absent(message: str) -> ApiError:
    return ApiError(404, "RESOURCE_DOES_NOT_EXIST", message)


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
