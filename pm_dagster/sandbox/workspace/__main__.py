"""The local workspace as a process of its own: ``python -m pm_dagster.sandbox.workspace``.

Give the token by PM_SANDBOX_TOKEN rather than as an
argument, which other users of the machine can read.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from pm_dagster.sandbox.workspace.server import LocalWorkspace


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(prog="pm_dagster.sandbox.workspace", description="A local Databricks workspace.")
    parser.add_argument("--port", type=int, default=8765, help="0 takes any free port")
    parser.add_argument("--address", default="127.0.0.1", help="a loopback address")
    parser.add_argument("--token", default=os.environ.get("PM_SANDBOX_TOKEN"), help="better: PM_SANDBOX_TOKEN")
    parser.add_argument(
        "--state",
        type=Path,
        default=None,
        help="a file that keeps jobs and runs over a restart; files and secrets go into a folder beside it",
    )
    given = parser.parse_args(arguments)
    if not given.token:
        parser.error("set PM_SANDBOX_TOKEN, or give --token")
    workspace = LocalWorkspace(given.token, given.port, given.address, given.state)
    listener = workspace.listen()
    sys.stdout.write(f"Local workspace on {workspace.host}\n")
    sys.stdout.flush()
    workspace.server().run([listener])


if __name__ == "__main__":
    main()
