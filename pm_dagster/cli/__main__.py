"""``python -m pm_dagster.cli``, for where the command ``pm`` is not on the path."""

from __future__ import annotations

from pm_dagster.cli.app import main

main()
