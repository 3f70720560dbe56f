"""Tasks that really execute: a ``spark_python_task`` of a deployed job as a local process.

Put here: everything from the job's settings to the program's end. Keep out: HTTP, and which run may start
(``scheduler.py``). ``executor.py`` goes through a run's tasks, ``preparation.py`` says what to start, ``process.py``
follows it; ``keeper.py`` and ``launcher.py`` are the inside of the process and import nothing of ours. Not imitated:
independent tasks side by side (they run one after another), retries of a task, clusters, installing libraries.
"""
