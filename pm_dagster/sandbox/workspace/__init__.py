"""A local workspace on loopback: jobs, files, permissions, secrets; good enough for the official SDK and CLI.

Nothing of Process Manager itself is in this package, and production code never imports it. Start with ``server.py``
(``LocalWorkspace``); ``switches.py`` lists what is not known of the real service and can be had either way.
"""

from pm_dagster.sandbox.workspace.server import LocalWorkspace

__all__ = ["LocalWorkspace"]
