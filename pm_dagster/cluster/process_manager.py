"""The file that the job's Spark Python task runs: the way to ``entry.main``, and nothing else.

Databricks reads this text, compiles it under its path and executes it. ``__file__`` may be missing, and a SystemExit
counts as a failure, that of 0 too. The file is no module: what it needs stands at the top level, which also works where
it is executed with locals of its own.
"""

import sys
from pathlib import Path

here = Path((lambda: None).__code__.co_filename).resolve()
sys.path.insert(0, str(here.parents[2]))

from pm_dagster.cluster.entry import main  # noqa: E402 the path leads there only now

main(sys.argv[1:])
