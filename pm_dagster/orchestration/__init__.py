"""Process Manager in Dagster, a thin skin.

Decisions about rows are in ``dispatch``, the database in ``ledger``, calls to the workspace in ``databricks``.

===============  ======================================================================
``assets``       the assets, the graph with its ops, and the asset check
``jobs``         the jobs, their config and their tags
``automation``   the sensor and the schedule, and the runs that are already under way
``dead_runs``    the rule by which a run is dead
``resources``    the control table, the workspace and the dispatch over both
``execution``    how an op runs: its retries, its failures, its log
``frames``       the DataFrames between ops
``metadata``     what materializations show in the UI
``names``        the names and tags that operators see
===============  ======================================================================
"""

import gc

# Every process of Dagster imports this package, when Dagster itself is imported. What is imported stays, so the garbage
# collector need not walk through it, again and again, while more is imported and a run goes on.
gc.freeze()
