"""The command ``pm``: what a person on call types, and what runs a pass where there is no Dagster.

One module a command, with its options, its columns and its texts. ``app`` is the program around them, ``connections``
opens what a command needs, ``options`` and ``output`` have what several commands take and print. Nothing heavy is
imported before a command needs it, so that ``pm --help`` answers at once.
"""

from __future__ import annotations

from pm_dagster.cli.app import main, run

__all__ = ["main", "run"]
