"""Reads a secret from a file, a vault or a secret scope, and says what a failure means.

Nothing that is read is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pm_dagster.config import entra
from pm_dagster.config.credentials.references import (
    FileSecret,
    NoSuchSecret,
    Reference,
    Scope,
    ScopeSecret,
    VaultSecret,
)
from pm_dagster.errors import AuthenticationFailed, ConfigurationError, ProcessManagerError, Refused
from pm_dagster.net.retry import retry

if TYPE_CHECKING:
    from pm_dagster.databricks.secret_scopes import SecretScopes

T = TypeVar("T")
_LARGEST_FILE = 64 * 1024


class Readers:
    """Reads references; ``sign_in`` opens the workspace's scopes when the first of them is asked for.

    The same object does not ask a store again that failed: seven more variables would wait for the same time-outs.
    """

    def __init__(self, sign_in: Callable[[], SecretScopes]) -> None:
        self._sign_in = sign_in
        self._scopes: SecretScopes | None = None
        self._failed: dict[object, ProcessManagerError] = {}

    def read(self, reference: Reference) -> str:
        """The secret.

        Raises NoSuchSecret, ConfigurationError when it may not or cannot be read, Unavailable when its store does not
        answer.
        """
        if isinstance(reference, FileSecret):
            return _text(_content(reference.path))
        if isinstance(reference, VaultSecret):
            return _text(self._asked(reference.vault, lambda: _from_vault(reference)))
        return _text(self._asked(reference.scope, lambda: self._from_scope(reference)))

    def keys(self, scope: Scope) -> set[str]:
        """What a scope has. Raises as ``read``."""
        return self._asked(scope, lambda: _told(lambda: self._opened().keys(scope.name)))

    def _from_scope(self, reference: ScopeSecret) -> bytes:
        return _told(lambda: self._opened().get(reference.scope.name, reference.key))

    def _opened(self) -> SecretScopes:
        if self._scopes is None:
            self._scopes = self._sign_in()
        return self._scopes

    def _asked(self, store: object, work: Callable[[], T]) -> T:
        if store in self._failed:
            raise self._failed[store]
        try:
            return retry(work, what=f"reading {store}")
        except NoSuchSecret:
            raise
        except ProcessManagerError as error:
            self._failed[store] = error
            raise


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            content = stream.read(_LARGEST_FILE + 1)
    except FileNotFoundError:
        raise NoSuchSecret("there is no such file") from None
    except OSError as error:
        raise ConfigurationError(f"the file cannot be read: {error.strerror}") from None
    if len(content) > _LARGEST_FILE:
        raise ConfigurationError(f"the file is larger than {_LARGEST_FILE // 1024} KiB, so it is no secret")
    return content


def _without_newline(content: bytes) -> bytes:
    """Editors and ``echo`` end a text with one, also on its way to a store; a secret that itself ends so keeps it."""
    return content[: -2 if content.endswith(b"\r\n") else -1] if content.endswith(b"\n") else content


def _from_vault(reference: VaultSecret) -> bytes:
    try:
        from pm_dagster.config.credentials import key_vault  # noqa: PLC0415
    except ImportError:
        raise entra.missing_library("azure-keyvault-secrets") from None
    return key_vault.read(reference).encode()


def _told(work: Callable[[], T]) -> T:
    """What the workspace says no to, in words about secrets."""
    try:
        return work()
    except Refused as error:
        if error.gone:
            raise NoSuchSecret(f"the workspace has no such scope or key: {error}") from None
        raise ConfigurationError(f"the workspace refuses us; grant our user READ on the scope: {error}") from None
    except AuthenticationFailed as error:
        raise ConfigurationError(str(error)) from None


def _text(content: bytes) -> str:
    try:
        # Some editors begin a file with a byte order mark.
        text = _without_newline(content).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ConfigurationError("it is not text in UTF-8") from None
    if not text:
        raise ConfigurationError("it is empty")
    if "\0" in text:
        raise ConfigurationError("it contains a NUL character, which no credential can")
    return text
