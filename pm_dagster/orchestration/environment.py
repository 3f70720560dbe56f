"""The environment variables of a resource: those of the process, or a second set beside them."""

import os
from collections.abc import Mapping

#: What a second set replaces as a whole: no part of one database or workspace completes another.
_OURS = ("PM_", "PG", "DATABRICKS_", "ARM_")


def environment_of(prefix: str, given: Mapping[str, str] | None = None) -> Mapping[str, str]:
    """The variables that a resource reads, as they are at this moment.

    Args:
        prefix: Begins the names of a second set: with ``SECOND_``, SECOND_PM_SCHEMA stands for PM_SCHEMA, and PM_*,
            PG*, DATABRICKS_* and ARM_* without it do not count. Empty: the variables as they are.
        given: The variables to choose from; those of the process by default.
    """
    found = os.environ if given is None else given
    if not prefix:
        return found
    others = {name: value for name, value in found.items() if not name.startswith((*_OURS, prefix))}
    return others | {name.removeprefix(prefix): value for name, value in found.items() if name.startswith(prefix)}


PREFIX_DESCRIPTION = (
    "Begins the names of the variables that this resource reads: with SECOND_, SECOND_PM_SCHEMA stands for PM_SCHEMA. "
    "For a second control table or workspace in one code location; empty: PM_*, DATABRICKS_* and ARM_* as they are."
)
