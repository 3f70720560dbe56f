"""The tag by which the run queue keeps dispatches of one control table apart, and those of several together.

Put here: how a deployment's control table becomes a word. Keep out: whose run a run is (``under_way``).

The word is made when the code location loads, when a credential may not be there yet and must not be needed: a
reference to a secret stands for itself. No password goes into it, so it stays when that is rotated.
"""

import hashlib
import json
import re
from collections.abc import Mapping

from pm_dagster.config.credentials.references import NotReadableError, reference_in
from pm_dagster.config.settings import LIBPQ_VARIABLES
from pm_dagster.errors import ConfigurationError
from pm_dagster.ledger.connection_strings import url_parameters
from pm_dagster.orchestration import names

_PLACES = ("host", "hostaddr", "port", "dbname", "service")
_PARTS = ("PM_POSTGRES_HOST", "PM_POSTGRES_PORT", "PM_POSTGRES_DATABASE", "PGSERVICE", "PM_SECRETS", "PM_SCHEMA")
_READABLE_LENGTH = 40


def single_flight(given: Mapping[str, str]) -> dict[str, str]:
    """The tag of every dispatch of the control table that these variables lead to."""
    parts = {name: given.get(name, "") for name in _PARTS}
    parts |= {name: given.get(name, "") for name, part in LIBPQ_VARIABLES.items() if part in _PLACES}
    parts |= _places(given.get("PM_POSTGRES_URL", ""))
    table = given.get("PM_RUN_TABLE", "") or "mm_run_plc"
    known = json.dumps([table, sorted(item for item in parts.items() if item[1])])
    digest = hashlib.sha256(known.encode("utf-8", "surrogateescape")).hexdigest()[:12]
    # What a tag's value may hold everywhere: https://docs.dagster.io/guides/build/assets/metadata-and-tags/tags
    readable = re.sub(r"[^A-Za-z0-9_.-]", "_", table)[:_READABLE_LENGTH]
    return {names.SINGLE_FLIGHT: f"{readable}.{digest}"}


def _places(url: str) -> dict[str, str]:
    """Where a URL leads, without who goes there; a reference to a URL as it is."""
    try:
        if reference := reference_in(url):
            return {"url": str(reference)}
        found = url_parameters(url)
    except (ConfigurationError, NotReadableError):
        # Whoever uses it will be told; nothing of it is known to be no password.
        return {}
    return {part: found[part] for part in _PLACES if part in found}
