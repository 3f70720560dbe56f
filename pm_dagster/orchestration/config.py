"""What an operator may set for one run in the launchpad. Keep out: credentials, and what belongs to the deployment."""

import dagster as dg
from pydantic import Field


class DispatchConfig(dg.Config):
    """How much one dispatch takes."""

    limit: int | None = Field(
        default=None,
        ge=1,
        le=100_000,
        description=(
            "The most rows that this dispatch takes, oldest first; the rest stays WAITING for the next one. "
            "Without a value, PM_DISPATCH_LIMIT of the deployment holds (1000 by default)."
        ),
    )
