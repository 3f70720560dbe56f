"""The environment variables that hold credentials, and the conventional name of each in a store.

The names in a store are those of the secret scope that such deployments have.
"""

from __future__ import annotations

from collections.abc import Mapping

from pm_dagster.config.settings import LIBPQ_VARIABLES

#: Names a whole store: keyvault://VAULT or databricks-secret://SCOPE.
STORE = "PM_SECRETS"

DATABASE = (
    "PM_POSTGRES_URL",
    "PM_POSTGRES_HOST",
    "PM_POSTGRES_PORT",
    "PM_POSTGRES_DATABASE",
    "PM_POSTGRES_USER",
    "PM_POSTGRES_PASSWORD",
    "PM_POSTGRES_SSLMODE",
    "PM_SCHEMA",
    *LIBPQ_VARIABLES,
)
WORKSPACE = (
    "DATABRICKS_HOST",
    "DATABRICKS_TOKEN",
    "DATABRICKS_CLIENT_ID",
    "DATABRICKS_CLIENT_SECRET",
    "DATABRICKS_USERNAME",
    "DATABRICKS_PASSWORD",
    "DATABRICKS_AZURE_RESOURCE_ID",
    "ARM_CLIENT_ID",
    "ARM_CLIENT_SECRET",
    "ARM_TENANT_ID",
)

#: Where a store has the value of a variable that is not set.
IN_STORE: Mapping[str, str] = {
    "DATABRICKS_HOST": "databricks-instance",
    "DATABRICKS_TOKEN": "databricks-access-token",
    "PM_POSTGRES_URL": "refDBjdbcURL",
    "PM_POSTGRES_HOST": "refDBhostname",
    "PM_POSTGRES_DATABASE": "refDBname",
    "PM_POSTGRES_USER": "refDBuser",
    "PM_POSTGRES_PASSWORD": "refDBpwd",
    "PM_SCHEMA": "database-postgres-schema",
}
#: The parts of a connection among them, by libpq's word.
PART_OF: Mapping[str, str] = {
    "PM_POSTGRES_HOST": "host",
    "PM_POSTGRES_DATABASE": "dbname",
    "PM_POSTGRES_USER": "user",
    "PM_POSTGRES_PASSWORD": "password",
}

#: What must never be shown: ours, and what the cluster job brings along for the jobs' own libraries.
SECRETS = (
    "PM_POSTGRES_PASSWORD",
    "PGPASSWORD",
    "DATABRICKS_TOKEN",
    "DATABRICKS_CLIENT_SECRET",
    "DATABRICKS_PASSWORD",
    "ARM_CLIENT_SECRET",
    "MDM_CLIENT_SECRET",
    "JFROG_TOKEN",
    "SKID_TOKEN",
)
