"""A local workspace on loopback: jobs, files, permissions, secrets; good enough for the official SDK and CLI.

Put here: the emulator's model, rules, transport and its page. Keep out: anything of Process Manager itself; production
code never imports this package. Start with ``server.py`` (``LocalWorkspace``); ``switches.py`` lists what is not known
of the real service and can be had either way.
"""

from pm_dagster.sandbox.workspace.server import LocalWorkspace

__all__ = ["LocalWorkspace"]
