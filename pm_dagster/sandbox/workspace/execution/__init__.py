"""Tasks that really execute: a ``spark_python_task`` of a deployed job as a local process.

``executor.py`` goes through a run's tasks, ``preparation.py`` says what to start, ``process.py`` follows it.
``launcher.py`` is the inside of the process, under ``sandbox/supervisor.py``, and imports nothing of ours. Not
imitated: independent tasks side by side (they run one after another), retries of a task, clusters, installing
libraries.
"""
