"""What stands for a secret in an environment variable, and how it is written.

A reference is no secret and may be shown.

==============================================  ===========================================================
``file:///run/secrets/password``                a file of this machine
``keyvault://VAULT/NAME[/VERSION]``             Azure Key Vault; VAULT is a name or a full host name
``https://VAULT.vault.azure.net/secrets/NAME``  the same, as Key Vault itself names it
``@Microsoft.KeyVault(SecretUri=...)``          the same, as App Service and Functions name it
``databricks-secret://SCOPE/KEY``               a secret scope of the workspace
``{{secrets/SCOPE/KEY}}``                       the same, as Databricks itself names it
==============================================  ===========================================================
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from pm_dagster.errors import ConfigurationError

#: https://learn.microsoft.com/en-us/azure/key-vault/general/about-keys-secrets-certificates#dns-suffixes-for-object-identifiers
_VAULT_SUFFIXES = (".vault.azure.net", ".vault.azure.cn", ".vault.usgovcloudapi.net")
_VAULT_NAME = re.compile(r"[A-Za-z0-9-]{3,24}")
_SECRET_NAME = re.compile(r"[A-Za-z0-9-]{1,127}")
#: https://docs.databricks.com/aws/en/security/secrets/#create-a-secret-scope
_SCOPE_NAME = re.compile(r"[\w.@-]{1,128}", re.ASCII)
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://", re.ASCII)
_FILE = re.compile(r"file:/", re.IGNORECASE)
#: https://learn.microsoft.com/en-us/azure/app-service/app-service-key-vault-references
_APP_SERVICE = re.compile(r"@Microsoft\.KeyVault\((.*)\)", re.IGNORECASE)
_HALF_A_REFERENCE = re.compile(r"@Microsoft\.KeyVault|\{\{\s*secrets/", re.IGNORECASE)
_DATABRICKS = re.compile(r"\{\{\s*secrets/([^/{}]+)/([^/{}]+?)\s*\}\}")
#: Schemes of values that are no references; also with a driver's name behind them.
_ORDINARY = ("http", "postgres")
_FORMS = "file:///PATH, keyvault://VAULT/NAME or databricks-secret://SCOPE/KEY"


class NoSuchSecret(ConfigurationError):
    """The store is there and lets us in, but has nothing under this name."""


class NotReadableError(ValueError):
    """Something has the look of a reference but not its form; the text says what is wrong, without the value."""


@dataclass(frozen=True)
class FileSecret:
    """The content of a file."""

    path: Path

    def __str__(self) -> str:
        """For people."""
        return f"file {self.path}"


@dataclass(frozen=True)
class Vault:
    """An Azure Key Vault by its host name."""

    host: str

    def __str__(self) -> str:
        """For people."""
        return f"Key Vault {self.host.partition('.')[0] if self.host.endswith(_VAULT_SUFFIXES[0]) else self.host}"

    def secret(self, name: str) -> VaultSecret:
        """One of its secrets."""
        return VaultSecret(self, name)


@dataclass(frozen=True)
class VaultSecret:
    """A secret of a vault; the latest version when none is named."""

    vault: Vault
    name: str
    version: str | None = None

    def __str__(self) -> str:
        """For people."""
        return f"{self.vault}, secret {self.name}" + (f", version {self.version}" if self.version else "")


@dataclass(frozen=True)
class Scope:
    """A secret scope of the workspace."""

    name: str

    def __str__(self) -> str:
        """For people."""
        return f"secret scope {self.name}"

    def secret(self, name: str) -> ScopeSecret:
        """One of its secrets."""
        return ScopeSecret(self, name)


@dataclass(frozen=True)
class ScopeSecret:
    """A secret of a scope."""

    scope: Scope
    key: str

    def __str__(self) -> str:
        """For people."""
        return f"{self.scope}, key {self.key}"


Reference = FileSecret | VaultSecret | ScopeSecret
Store = Vault | Scope


def reference_in(value: str) -> Reference | None:
    """The reference that a value is, or None for an ordinary value. Raises NotReadableError."""
    text = value.strip()
    if found := _APP_SERVICE.fullmatch(text):
        return _app_service(found[1])
    if found := _DATABRICKS.fullmatch(text):
        return _scope_secret(found[1], found[2])
    if _HALF_A_REFERENCE.match(text):
        raise NotReadableError("it is neither @Microsoft.KeyVault(SecretUri=...) nor {{secrets/SCOPE/KEY}}")
    if _FILE.match(text):
        return _file(text)
    if url := _URL.match(text):
        return _by_scheme(url[1].lower(), text)
    return None


def store_in(value: str) -> Store:
    """The store that a value names. Raises NotReadableError."""
    scheme, _, rest = value.strip().partition("://")
    if scheme.lower() in ("keyvault", "https"):
        return _vault(rest.rstrip("/"))
    if scheme.lower() == "databricks-secret":
        return Scope(_checked(_SCOPE_NAME, rest.rstrip("/"), "scope"))
    raise NotReadableError("a store is keyvault://VAULT or databricks-secret://SCOPE")


def _by_scheme(scheme: str, text: str) -> Reference | None:
    rest = text.partition("://")[2]
    if scheme == "keyvault":
        vault, _, secret = rest.partition("/")
        return _vault_secret(vault, secret)
    if scheme == "databricks-secret":
        scope, _, key = rest.partition("/")
        return _scope_secret(scope, key)
    if scheme == "https" and rest.partition("/")[0].lower().endswith(_VAULT_SUFFIXES):
        return _identifier(text)
    if not scheme.startswith(_ORDINARY):
        raise NotReadableError(
            f"what stands before :// is not the name of a store of secrets; use {_FORMS}. A secret that only looks like"
            " a reference can be given in a file"
        )
    return None


def _file(text: str) -> FileSecret:
    parts = _split(text)
    path = unquote(parts.path)
    if parts.netloc not in ("", "localhost") or not path.startswith("/") or "\0" in path:
        raise NotReadableError("a file is given by its full path, file:///run/secrets/NAME")
    return FileSecret(Path(path))


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError:
        raise NotReadableError("it is no URL") from None


def _app_service(inside: str) -> VaultSecret:
    pairs = [part.partition("=") for part in inside.split(";") if part.strip()]
    given = {name.strip().lower(): value.strip() for name, _, value in pairs}
    if "secreturi" in given:
        return _identifier(given["secreturi"])
    secret = "/".join(part for part in (given.get("secretname", ""), given.get("secretversion", "")) if part)
    return _vault_secret(given.get("vaultname", ""), secret)


def _identifier(url: str) -> VaultSecret:
    """https://learn.microsoft.com/en-us/azure/key-vault/general/about-keys-secrets-certificates#object-identifiers."""
    parts = _split(url)
    collection, _, secret = parts.path.strip("/").partition("/")
    if parts.scheme != "https" or collection != "secrets" or parts.query:
        raise NotReadableError("a secret's identifier is https://VAULT.vault.azure.net/secrets/NAME[/VERSION]")
    return _vault_secret(parts.netloc, secret)


def _vault_secret(vault: str, secret: str) -> VaultSecret:
    name, _, version = secret.rstrip("/").partition("/")
    checked = _checked(_SECRET_NAME, version, "version of a secret") if version else None
    return VaultSecret(_vault(vault), _checked(_SECRET_NAME, name, "name of a secret"), checked)


def _vault(text: str) -> Vault:
    """A bare name is one of the public cloud; a token goes to no host but Key Vault's."""
    name, dot, suffix = text.lower().partition(".")
    if dot and f".{suffix}" not in _VAULT_SUFFIXES:
        raise NotReadableError(f"a vault is a name, or a host that ends in {', '.join(_VAULT_SUFFIXES)}")
    return Vault(_checked(_VAULT_NAME, name, "name of the vault") + (f".{suffix}" if dot else _VAULT_SUFFIXES[0]))


def _scope_secret(scope: str, key: str) -> ScopeSecret:
    return ScopeSecret(Scope(_checked(_SCOPE_NAME, scope, "scope")), _checked(_SCOPE_NAME, key.rstrip("/"), "key"))


def _checked(form: re.Pattern[str], text: str, what: str) -> str:
    if not form.fullmatch(text):
        raise NotReadableError(f"the {what} is missing or has characters that it cannot have")
    return text
