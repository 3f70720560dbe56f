"""An Azure Key Vault: challenge, then secrets by name and version.

https://learn.microsoft.com/en-us/rest/api/keyvault/secrets/get-secret/get-secret and
https://learn.microsoft.com/en-us/azure/key-vault/general/authentication-requests-and-responses
"""

from __future__ import annotations

import hashlib

from pm_dagster_tests.credentials import entra_site
from pm_dagster_tests.credentials.entra_site import Entra
from pm_dagster_tests.credentials.internet import Asked, Reply, json_reply


class Vault:
    """``site`` answers for ``host``; what is in ``trouble`` is answered first, each once."""

    def __init__(self, host: str, entra: Entra) -> None:
        self.host, self._entra = host, entra
        self._versions: dict[str, list[str]] = {}
        self.trouble: list[Reply] = []

    def put(self, name: str, value: str) -> str:
        """A new version of a secret; gives its id."""
        self._versions.setdefault(name, []).append(value)
        return _version(name, len(self._versions[name]) - 1)

    def site(self, asked: Asked) -> Reply:
        """Answer one request."""
        if not self._entra.accepts(asked.bearer, entra_site.VAULTS):
            return self._challenge()
        if self.trouble:
            return self.trouble.pop(0)
        _, collection, name, *version = asked.path.split("/")
        if collection != "secrets" or asked.method != "GET":
            return refusal(400, "BadParameter", "Method GET does not allow operation ''")
        values = self._versions.get(name, [])
        ids = [_version(name, number) for number in range(len(values))]
        wanted = next((part for part in version if part), None) or (ids[-1] if ids else "")
        if wanted not in ids:
            text = f"A secret with (name/id) {name} was not found in this key vault. If you recently deleted it ..."
            return refusal(404, "SecretNotFound", text)
        return json_reply(
            {
                "value": values[ids.index(wanted)],
                "id": f"https://{self.host}/secrets/{name}/{wanted}",
                "attributes": {"enabled": True, "created": 1700000000, "updated": 1700000000},
            }
        )

    def _challenge(self) -> Reply:
        said = f'Bearer authorization="https://{entra_site.HOST}/{entra_site.TENANT}", resource="{entra_site.VAULTS}"'
        text = "AKV10000: Request is missing a Bearer or PoP token."
        return json_reply({"error": {"code": "Unauthorized", "message": text}}, 401, WWW_Authenticate=said)


def refusal(status: int, code: str, message: str, inner: str | None = None, **headers: str) -> Reply:
    """An error as Key Vault words it."""
    error: dict[str, object] = {"code": code, "message": message}
    return json_reply({"error": error | ({"innererror": {"code": inner}} if inner else {})}, status, **headers)


def _version(name: str, number: int) -> str:
    return hashlib.md5(f"{name}/{number}".encode(), usedforsecurity=False).hexdigest()
