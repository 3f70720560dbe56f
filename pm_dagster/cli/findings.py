"""What `pm doctor` says of credentials: where each came from, never its value.

Put here: words about origins. Keep out: the checks that use the credentials (``doctor.py``).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pm_dagster.config.settings import Settings

if TYPE_CHECKING:
    from pm_dagster.config.credentials import Resolved

_STORE = "PM_SECRETS"
_REMEDY = "correct the reference, create the secret, or let this identity read it"
#: Any of these says where the database is, or the workspace.
_DATABASE_PLACES = ("PM_POSTGRES_URL", "PM_POSTGRES_HOST", "PGHOST", "PGSERVICE")
_WORKSPACE_PLACES = ("DATABRICKS_HOST", "DATABRICKS_CONFIG_PROFILE")


@dataclass(frozen=True)
class Finding:
    """One check: its name, whether it is green, what was found, and what to do when it is red."""

    check: str
    ok: bool
    found: str
    remedy: str = ""


class Missing:
    """The credentials without which database or workspace need not be tried."""

    def __init__(self, found: Resolved) -> None:
        from pm_dagster.config.credentials import DATABASE, WORKSPACE  # noqa: PLC0415

        self._found = found
        self._failed = [failure.variable for failure in found.failures]
        self.database = self._of(DATABASE, _DATABASE_PLACES)
        self.workspace = self._of(WORKSPACE, _WORKSPACE_PLACES)

    def _of(self, variables: Iterable[str], places: Iterable[str]) -> list[str]:
        failed = [name for name in self._failed if name in variables]
        somewhere = any(self._found.environment.get(name) for name in places)
        return failed + ([_STORE] if _STORE in self._failed and not somewhere else [])


def credentials(found: Resolved, settings: Settings) -> list[Finding]:
    """One finding for each credential that is set or was found, and for each that could not be had."""
    findings = [
        Finding(f"credential {failure.variable}", ok=False, found=str(failure.error), remedy=_REMEDY)
        for failure in found.failures
    ]
    failed = {failure.variable for failure in found.failures}
    findings += [
        Finding(f"credential {origin.variable}", ok=True, found=f"from {origin.source}")
        for origin in found.origins
        if origin.variable not in failed
    ]
    if settings.postgres_auth == "entra":
        findings.append(Finding("credential of the database user", ok=True, found="a token from Entra ID"))
    return findings
