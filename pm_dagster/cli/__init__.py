"""The command ``pm``: what a person on call types, and what runs a pass where there is no Dagster.

Put here: options, output and exit codes. Keep out: decisions (``core``), SQL (``postgres``) and calls (``workspace``).
Nothing heavy is imported before a command needs it, so that ``pm --help`` answers at once.
"""

from __future__ import annotations

from pm_dagster.cli.app import main, run

__all__ = ["main", "run"]
