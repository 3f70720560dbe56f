"""The file that the job's Spark Python task runs. Keep out: everything but the way to ``entry.main``.

Databricks reads this text, compiles it under its path and executes it, so ``__file__`` may be missing, and a
SystemExit, of 0 too, counts as a failure. It is no module: everything is said at the top level, which also works where
it is executed with locals of its own.
"""

import sys
from pathlib import Path

here = Path((lambda: None).__code__.co_filename).resolve()
sys.path.insert(0, str(here.parents[2]))

from pm_dagster.cluster.entry import main  # noqa: E402 it is found only now

main(sys.argv[1:])
