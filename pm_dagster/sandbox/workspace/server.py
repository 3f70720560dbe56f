"""``LocalWorkspace``: the application on a loopback port, in a thread of this process.

``__main__.py`` is the same as a process of its own.
"""

from __future__ import annotations

import ipaddress
import secrets
import shutil
import socket
import tempfile
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import uvicorn

from pm_dagster.sandbox.workspace.answers import CuttableProtocol
from pm_dagster.sandbox.workspace.app import build_app
from pm_dagster.sandbox.workspace.execution.executor import Executor
from pm_dagster.sandbox.workspace.execution.outputs import Outputs
from pm_dagster.sandbox.workspace.execution.preparation import Preparation
from pm_dagster.sandbox.workspace.files import WorkspaceFiles
from pm_dagster.sandbox.workspace.gate import Parts
from pm_dagster.sandbox.workspace.identity import Tokens
from pm_dagster.sandbox.workspace.memory import StateFile
from pm_dagster.sandbox.workspace.permissions import Permissions
from pm_dagster.sandbox.workspace.secret_scopes import SecretScopes
from pm_dagster.sandbox.workspace.state import WorkspaceState
from pm_dagster.sandbox.workspace.switches import Switches

CLIENT_ID = "sandbox-service-principal"


class NotLoopback(ValueError):
    """The sandbox listens on loopback addresses only."""


class LocalWorkspace:
    """A workspace to talk to. Stopping keeps its state; starting again uses the same port.

    With a ``state_file`` (say ``workspace.json``) jobs and runs are kept in it over a restart, and uploaded files,
    secrets and permissions in a folder beside it (``workspace_data``); without one everything ends with this object.
    """

    def __init__(
        self,
        token: str | None = None,
        port: int = 0,
        address: str = "127.0.0.1",
        state_file: Path | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if not ipaddress.ip_address(address).is_loopback:
            raise NotLoopback(f"{address} is not a loopback address")
        self.token = token or secrets.token_urlsafe(16)
        self.client_id, self.client_secret = CLIENT_ID, self.token
        self.switches = Switches()
        self.state = WorkspaceState(self.switches, clock, StateFile(state_file) if state_file else None)
        tokens = Tokens(self.token, self.client_id, self.client_secret, clock)
        kept = _folder_beside(state_file) if state_file else self._temporary_folder()
        self.files, self.secrets = WorkspaceFiles(kept, clock), SecretScopes(kept / "secrets.json", clock)
        preparation, outputs = Preparation(self.files, self.secrets), Outputs(kept / "outputs")
        self.state.execute_by(Executor(preparation, outputs, self.switches))
        self.permissions = Permissions(StateFile(kept / "permissions.jsonl"))
        self._parts = Parts(self.state, tokens, self.switches, self.files, self.secrets, self.permissions)
        self.tokens, self.faults = self._parts.tokens, self._parts.faults
        self.limits, self.log = self._parts.limits, self._parts.log
        self._app = build_app(self._parts)
        self._address, self._port = address, port
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    def _temporary_folder(self) -> Path:
        folder = Path(tempfile.mkdtemp(prefix="pm-workspace-"))
        # At the end of this object rather than of stop(), after which it may start again with all it knew.
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return folder

    @property
    def port(self) -> int:
        """The port; 0 before the first start unless one was asked for."""
        return self._port

    @property
    def host(self) -> str:
        """The URL that clients take as host."""
        name = f"[{self._address}]" if ":" in self._address else self._address
        return f"http://{name}:{self._port}"

    def start(self) -> Self:
        """Listen, and return once requests are answered."""
        if self._thread is not None:
            return self
        listener = self.listen()
        self._server = self.server()
        self._thread = threading.Thread(
            target=self._server.run, args=([listener],), name="local-workspace", daemon=True
        )
        self._thread.start()
        deadline = time.monotonic() + 10
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                raise RuntimeError("the local workspace did not start")
            time.sleep(0.005)
        return self

    def stop(self) -> None:
        """Close every connection and the port."""
        if self._server is None or self._thread is None:
            return
        self._server.should_exit = True
        self._thread.join(timeout=10)
        self.state.flush()
        self._server = self._thread = None

    def reset(self) -> None:
        """Forget jobs, runs, files, secrets, permissions, faults, limits, switches and the log, without a restart."""
        self._parts.reset()

    def __enter__(self) -> Self:
        """Start."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop."""
        self.stop()

    def listen(self) -> socket.socket:
        """The bound socket; from here on ``port`` and ``host`` are known."""
        family = socket.AF_INET6 if ":" in self._address else socket.AF_INET
        # asyncio switches Nagle's algorithm off only where the protocol is named; with it every answer takes 40 ms.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((self._address, self._port))
        except OSError:
            listener.close()
            raise
        listener.listen(512)
        self._port = int(listener.getsockname()[1])
        return listener

    def server(self) -> uvicorn.Server:
        """A uvicorn server for the application."""
        return uvicorn.Server(
            uvicorn.Config(
                self._app,
                http=CuttableProtocol,
                ws="none",
                lifespan="on",
                access_log=False,
                log_level="error",
                timeout_keep_alive=60,
                timeout_graceful_shutdown=1,
            )
        )


def _folder_beside(state_file: Path) -> Path:
    folder = state_file.with_name(f"{state_file.stem}_data")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder
