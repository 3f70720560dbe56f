"""Dynamic value references, ``{{job.parameters.NAME}}`` and the like, in the parameters of a task.

Put here: finding and replacing them. Keep out: where the values come from (``preparation.py``). The rules are those of
https://docs.databricks.com/jobs/dynamic-value-references.html: what is no reference stays as it is; what looks like one
of a known namespace but is none is an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_REFERENCE = re.compile(r"\{\{([^{}]+)\}\}")
_PARAMETER = re.compile(r"job\.parameters\.(?:`([^`]+)`|(\w+))")
_KNOWN = ("job.", "task.", "tasks.", "workspace.", "input.", "backfill.")


class UnknownReference(ValueError):
    """A reference that nothing stands for."""


def resolved(text: str, values: Mapping[str, str], parameters: Mapping[str, str]) -> str:
    """The text with every reference replaced.

    Args:
        text: What the job's settings hold.
        values: What each reference other than a job parameter stands for, such as ``job.id``.
        parameters: The job parameters of the run.

    Raises:
        UnknownReference: When a job parameter does not exist, or a known namespace has no such name.
    """

    def value(match: re.Match[str]) -> str:
        name = match[1]
        parameter = _PARAMETER.fullmatch(name)
        if parameter is not None:
            return _existing(parameters, parameter[1] or parameter[2], match[0])
        return _existing(values, name, match[0]) if name.startswith(_KNOWN) else match[0]

    return _REFERENCE.sub(value, text)


def _existing(values: Mapping[str, str], name: str, reference: str) -> str:
    if name not in values:
        raise UnknownReference(f"{reference} refers to nothing that the local workspace knows.")
    return values[name]
