"""Environment variables with every reference replaced by the secret it names.

A workspace's scopes can only be read after signing in to it, so what signs in is looked up first: files and vaults,
then the vault that PM_SECRETS names, then scopes, then the scope that PM_SECRETS names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pm_dagster.config.credentials.readers import Readers
from pm_dagster.config.credentials.references import (
    NoSuchSecret,
    NotReadableError,
    Reference,
    Scope,
    ScopeSecret,
    Store,
    Vault,
    reference_in,
    store_in,
)
from pm_dagster.config.credentials.variables import DATABASE, IN_STORE, PART_OF, SECRETS, STORE, WORKSPACE
from pm_dagster.config.masking import register_secret
from pm_dagster.config.settings import LIBPQ_VARIABLES, as_meant, settings_from
from pm_dagster.errors import ConfigurationError, ProcessManagerError, Unavailable
from pm_dagster.ledger.connection_strings import url_parameters

if TYPE_CHECKING:
    from pm_dagster.databricks.secret_scopes import SecretScopes

_GIVEN = "environment variable"
#: What else the workspace's SDK takes from the environment.
_SIGN_IN = ("DATABRICKS_", "ARM_")
#: A name, of which ``settings_from`` judges every character.
_COMPARED = ("PM_SCHEMA",)
_URL, _HOST = "PM_POSTGRES_URL", "PM_POSTGRES_HOST"
#: Each of these says where the database is.
_PLACES = (_HOST, "PGHOST", "PGSERVICE")


@dataclass(frozen=True)
class Origin:
    """Where one credential came from, never its value: ``variable`` is its name, ``source`` words for people."""

    variable: str
    source: str


@dataclass(frozen=True)
class Failure:
    """A credential that could not be had, and why; the error names the variable and the reference."""

    variable: str
    error: ProcessManagerError


@dataclass(frozen=True)
class Resolved:
    """The environment to read settings and credentials from, and where each credential in it came from."""

    environment: Mapping[str, str]
    origins: tuple[Origin, ...] = ()
    failures: tuple[Failure, ...] = ()


def resolved(environment: Mapping[str, str], variables: Sequence[str] = (*DATABASE, *WORKSPACE)) -> Resolved:
    """Replace references among ``variables`` by secrets, and fill what is unset from the store of PM_SECRETS.

    Raises ConfigurationError naming the variable and the reference, or Unavailable when a store does not answer.
    """
    found = looked_up(environment, variables)
    for failure in found.failures:
        raise failure.error
    return found


def looked_up(environment: Mapping[str, str], variables: Sequence[str] = (*DATABASE, *WORKSPACE)) -> Resolved:
    """The same without stopping at the first failure: what failed is listed, and not in the environment."""
    work = _LookUp(environment)
    work.run(variables)
    work.mask()
    origins = tuple(Origin(name, work.sources[name]) for name in variables if name in work.sources)
    failures = tuple(Failure(name, error) for name, error in work.failures.items())
    return Resolved({k: v for k, v in work.values.items() if k not in work.failures}, origins, failures)


class _LookUp:
    """One look at everything."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.values = dict(environment)
        self.sources: dict[str, str] = {}
        self.failures: dict[str, ProcessManagerError] = {}
        self._pending: dict[str, Reference] = {}
        self._readers = Readers(self._scopes)

    def run(self, variables: Sequence[str]) -> None:
        """Look up in the order that the module's docstring gives."""
        store = self._store()
        self._sort(variables)
        if isinstance(store, Scope) or any(isinstance(reference, ScopeSecret) for reference in self._pending.values()):
            self._sort(WORKSPACE)
            variables = (*variables, *WORKSPACE)
        precedence = StorePrecedence(self.values)
        self._read(scopes=False)
        if isinstance(store, Vault):
            self._fill(store, [name for name in WORKSPACE if name in variables], precedence)
        self._read(scopes=True)
        if store is not None:
            self._fill(store, variables, precedence)

    def mask(self) -> None:
        """Let no text show the secrets from here on."""
        for name in SECRETS:
            # What was not looked at may still be a reference, and must not take the place of its secret.
            looked_at = name in self.sources or name not in (*DATABASE, *WORKSPACE)
            if looked_at and self.values.get(name) and name not in self.failures:
                register_secret(self.values[name])
        try:
            in_url = url_parameters(self.values.get("PM_POSTGRES_URL", "")).get("password")
        except ConfigurationError:
            in_url = None
        if in_url:
            register_secret(in_url)

    def _store(self) -> Store | None:
        if not self._tidy(STORE):
            return None
        try:
            return store_in(self.values[STORE]) if self.values.get(STORE) else None
        except NotReadableError as error:
            self.failures[STORE] = ConfigurationError(f"{STORE} cannot be used: {error}")
            return None

    def _sort(self, variables: Sequence[str]) -> None:
        """Tell values from references."""
        if WORKSPACE[0] in variables:
            for name in self.values:
                if name.startswith(_SIGN_IN) and name not in WORKSPACE:
                    self._tidy(name)
        for name in variables:
            if not self.values.get(name) or name in self.sources:
                continue
            try:
                reference = reference_in(self.values[name])
                if reference is None and not self._tidy(name):
                    continue
            except NotReadableError as error:
                self.failures[name] = ConfigurationError(f"{name} looks like a reference to a secret, but {error}")
                continue
            self.sources[name] = str(reference or _GIVEN)
            if reference is not None:
                self._pending[name] = reference

    def _tidy(self, name: str) -> bool:
        """Take a value as it was meant; False when it cannot be used, and is among the failures."""
        try:
            if self.values.get(name) and name not in _COMPARED:
                self.values[name] = as_meant(name, self.values[name])
        except ConfigurationError as error:
            self.failures[name] = error
            return False
        return True

    def _read(self, *, scopes: bool) -> None:
        now = [name for name, reference in self._pending.items() if isinstance(reference, ScopeSecret) is scopes]
        for name in now:
            try:
                self.values[name] = _as_found(name, self._readers.read(self._pending[name]))
            except ProcessManagerError as error:
                self.failures[name] = _named(f"{name} ({self._pending[name]})", error)
        # Only now: what signs in must not be taken from what is still a reference.
        for name in now:
            del self._pending[name]

    def _fill(self, store: Store, variables: Sequence[str], precedence: StorePrecedence) -> None:
        try:
            there = self._readers.keys(store) if isinstance(store, Scope) else None
            for name in variables:
                if name not in IN_STORE or self.values.get(name) or not precedence.from_store(name, self.values):
                    continue
                if there is None or IN_STORE[name] in there:
                    self._take(name, store.secret(IN_STORE[name]))
        except ProcessManagerError as error:
            self.failures[STORE] = _named(f"{STORE} ({store})", error)

    def _take(self, name: str, reference: Reference) -> None:
        try:
            self.values[name] = _as_found(name, self._readers.read(reference))
        except NoSuchSecret:
            return
        except ProcessManagerError as error:
            raise _named(f"for {name}, {reference}", error) from None
        self.sources[name] = f"{STORE}: {reference}"

    def _scopes(self) -> SecretScopes:
        """The workspace's scopes, signed in to with what does not come from a scope itself."""
        # The SDK takes half a second to import, and most commands need only the database.
        from pm_dagster.databricks.secret_scopes import SecretScopes  # noqa: PLC0415
        from pm_dagster.databricks.sign_in import signed_in  # noqa: PLC0415

        unknown = {*self._pending, *self.failures}
        known = {name: value for name, value in self.values.items() if name not in unknown}
        settings = settings_from(known)
        try:
            return SecretScopes(signed_in(known, settings), settings.http_timeout_seconds)
        except ConfigurationError as error:
            message = f"a secret scope is read after signing in: give host and credentials in another way: {error}"
            raise ConfigurationError(message) from None


class StorePrecedence:
    """Which unset variables a whole store is asked for: it completes what was set and overrides nothing of it."""

    def __init__(self, given: Mapping[str, str]) -> None:
        self._given = dict(given)
        self._has_url = bool(given.get(_URL))

    def from_store(self, variable: str, now: Mapping[str, str]) -> bool:
        """True when an unset variable is taken from the store; ``now`` holds the values that are known so far."""
        if variable == "DATABRICKS_TOKEN":
            # The SDK takes half a second to import, and most commands need only the database.
            from pm_dagster.databricks.sign_in import is_configured  # noqa: PLC0415

            return not is_configured(now)
        if variable == "DATABRICKS_HOST":
            return not now.get("DATABRICKS_CONFIG_PROFILE")
        if variable == _URL:
            return not any(self._given.get(name) for name in _PLACES)
        return variable not in PART_OF or self._part_is_missing(PART_OF[variable], now)

    def _part_is_missing(self, part: str, now: Mapping[str, str]) -> bool:
        if self._given.get("PGSERVICE") or (part == "password" and now.get("PM_POSTGRES_AUTH") == "entra"):
            return False
        if any(self._given.get(name) for name, its_part in LIBPQ_VARIABLES.items() if its_part == part):
            return False
        if not self._has_url:
            return True
        return part in ("user", "password") and part not in _parts(now[_URL])


def _parts(url: str) -> Mapping[str, str]:
    try:
        return url_parameters(url)
    except ConfigurationError:
        # Connecting will say so; until then nothing is known of it.
        return {}


def _as_found(name: str, value: str) -> str:
    return value if name in _COMPARED else as_meant(name, value, by_hand=False)


def _named(what: str, error: ProcessManagerError) -> ProcessManagerError:
    kind = Unavailable if isinstance(error, Unavailable) else ConfigurationError
    return kind(f"{what}: {error}")
