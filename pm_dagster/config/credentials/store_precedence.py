"""Which of its credentials a whole store is asked for.

Put here: when what somebody set in a variable makes a name in the store unwanted. Keep out: looking it up.
"""

from __future__ import annotations

from collections.abc import Mapping

from pm_dagster.config.credentials.variables import PART_OF
from pm_dagster.config.settings import LIBPQ_VARIABLES
from pm_dagster.errors import ConfigurationError
from pm_dagster.ledger.parameters import url_parameters

_URL, _HOST = "PM_POSTGRES_URL", "PM_POSTGRES_HOST"
#: Each of these says where the database is.
_PLACES = (_HOST, "PGHOST", "PGSERVICE")


class StorePrecedence:
    """What was set before any store was asked: a store completes it and overrides nothing of it."""

    def __init__(self, given: Mapping[str, str]) -> None:
        self._given = dict(given)
        self._has_url = bool(given.get(_URL))

    def from_store(self, variable: str, now: Mapping[str, str]) -> bool:
        """True when an unset variable is to be taken from the store; ``now`` is what is known so far."""
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
