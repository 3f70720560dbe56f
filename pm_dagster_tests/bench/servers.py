"""Dagster's servers as they are deployed: one code server, the daemon with the sensor on, and the web server."""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pm_dagster.orchestration import names
from pm_dagster.sandbox.processes import Children, answers, free_port
from pm_dagster_tests.bench.place import Deployment

_DEPLOYED = Path(__file__).parents[2] / "deploy" / "dagster-local" / "dagster.yaml"
_LONGEST_SECONDS = 120.0
_PYTHON = (sys.executable, "-m")


@dataclass(frozen=True)
class Servers:
    """The servers of one deployment."""

    deployment: Deployment
    children: Children

    def wait_until_scheduled(self) -> None:
        """Wait until no row is WAITING. Raises RuntimeError, with the daemon's last words, when that takes too long."""
        try:
            self.deployment.wait_until_scheduled()
        except RuntimeError as error:
            raise RuntimeError(f"{error}; {self.children.log_of('daemon').read_text()[-1000:]}") from error

    def wait_until_idle(self) -> None:
        """Wait until no dispatcher is at work. Raises RuntimeError when that takes too long."""
        end = time.monotonic() + _LONGEST_SECONDS
        while self.deployment.sql("SELECT FROM process_manager.dispatcher WHERE ended_at IS NULL LIMIT 1"):
            if time.monotonic() > end:
                raise RuntimeError("a dispatcher does not end")
            time.sleep(0.2)


def cpu_seconds(children: Children) -> float:
    """CPU seconds of these processes and all that they started, so far."""
    ticks = os.sysconf("SC_CLK_TCK")
    return sum(sum(map(int, _stat(process)[11:15])) for process in _processes(children)) / ticks


def memory(children: Children) -> float:
    """Megabytes of memory of these processes and all that they started (PSS: what is shared counts in parts)."""
    return sum(_pss_kib(process) for process in _processes(children)) / 1024


def _processes(children: Children) -> list[int]:
    parents = {int(each.name): _parent(int(each.name)) for each in Path("/proc").iterdir() if each.name.isdigit()}
    found = [process.pid for process in children._running.values()]
    for process in found:
        found += [child for child, parent in parents.items() if parent == process]
    return found


@contextmanager
def servers(deployment: Deployment, *, web: bool = True, bytecode: bool = True, **variables: str) -> Iterator[Servers]:
    """Start the servers, the sensor on.

    Args:
        deployment: For which they dispatch.
        web: Whether the web server runs as well.
        bytecode: Whether Python finds compiled modules; without, each process compiles all that it imports.
        variables: More variables of their environment.
    """
    with tempfile.TemporaryDirectory(prefix="pm-dagster-") as folder:
        home = Path(folder)
        (home / "dagster.yaml").write_text(_DEPLOYED.read_text())
        environment = {**deployment.variables, "DAGSTER_HOME": str(home), **variables}
        if not bytecode:
            environment |= without_bytecode(home)
        with Children(environment, home / "output") as children:
            _start(children, home, web=web)
            yield Servers(deployment, children)


def without_bytecode(empty: Path) -> Mapping[str, str]:
    """The variables of a process that finds no compiled modules and writes none.

    Args:
        empty: A folder in which it looks for them in vain.
    """
    return {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPYCACHEPREFIX": str(empty / "pycache")}


def _start(children: Children, home: Path, *, web: bool) -> None:
    socket, workspace = home / "code", home / "workspace.yaml"
    location = {"socket": str(socket), "location_name": "pm_dagster.definitions"}
    # JSON is YAML.
    workspace.write_text(json.dumps({"load_from": [{"grpc_server": location}]}))
    api = ("dagster", "api", "grpc", "--socket", str(socket), "-m", "pm_dagster.definitions")
    children.start("code-server", [*_PYTHON, *api])
    _wait(children, "code-server", socket)
    # First and alone: it makes the tables of a new instance.
    children.run("sensor", [*_PYTHON, "dagster", "sensor", "start", names.SENSOR, "-w", str(workspace)])
    children.start("daemon", [*_PYTHON, "dagster._daemon", "run", "-w", str(workspace)])
    if web:
        port = free_port(0)
        at = ("-h", "127.0.0.1", "-p", str(port), "-w", str(workspace))
        children.start("webserver", [*_PYTHON, "pm_dagster.sandbox.webserver", *at])
        _wait(children, "webserver", port)


def _wait(children: Children, name: str, sign: Path | int) -> None:
    end = time.monotonic() + _LONGEST_SECONDS
    while not (sign.exists() if isinstance(sign, Path) else answers(sign)):
        if children.ended() or time.monotonic() > end:
            raise RuntimeError(f"{name} does not start: {children.log_of(name).read_text()[-2000:]}")
        time.sleep(0.1)


def _stat(process: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; zeros for a process that has ended."""
    try:
        text = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return ["0"] * 15
    return text.rpartition(")")[2].split()


def _parent(process: int) -> int:
    return int(_stat(process)[1])


def _pss_kib(process: int) -> int:
    try:
        found = re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{process}/smaps_rollup").read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(found[1]) if found else 0
