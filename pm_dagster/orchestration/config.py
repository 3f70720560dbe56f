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


class ClusterConfig(dg.Config):
    """Which deployed Databricks job is started, and how long its run is waited for."""

    job_name: str = Field(
        default="Process_Manager",
        min_length=1,
        description=(
            "The exact name of the deployed Databricks job. A job that was deployed for development is called "
            "'[dev somebody] Process_Manager'."
        ),
    )
    job_id: int | None = Field(
        default=None, ge=1, description="The id of the job, instead of its name: for when several jobs share it."
    )
    deadline_seconds: float = Field(
        default=1200.0,
        gt=0,
        le=86_400,
        description=(
            "The Databricks run is cancelled and this run fails when it has not ended after so many seconds. It should "
            "be more than the Databricks job's own limit (900 s) and less than this run's tag dagster/max_runtime "
            "(1500 s)."
        ),
    )
    poll_seconds: float = Field(
        default=5.0, gt=0, le=300, description="Seconds between two looks at the Databricks run."
    )
