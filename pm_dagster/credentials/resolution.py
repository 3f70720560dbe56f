"""Environment variables with every reference replaced by the secret it names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Origin:
    """Where one credential came from, never its value: ``variable`` is its name, ``source`` words for people."""

    variable: str
    source: str


@dataclass(frozen=True)
class Resolved:
    """The environment to read settings and credentials from, and where each credential in it came from."""

    environment: Mapping[str, str]
    origins: tuple[Origin, ...] = ()


def resolved(environment: Mapping[str, str]) -> Resolved:
    """Replace references by secrets. Raises ConfigurationError naming the variable, or Unavailable."""
    return Resolved(dict(environment))
