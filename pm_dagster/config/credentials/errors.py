"""What looking a secret up can say beyond the errors that all share."""

from __future__ import annotations

from pm_dagster.errors import ConfigurationError


class NoSuchSecret(ConfigurationError):
    """The store is there and lets us in, but has nothing under this name."""
