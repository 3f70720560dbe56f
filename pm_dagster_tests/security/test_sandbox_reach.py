"""Who can reach the sandbox: this machine's own programs with the token, no page of a browser and no other machine."""

from __future__ import annotations

import ipaddress
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from pm_dagster.sandbox.workspace import LocalWorkspace

JOB = 7
#: What POST changes, with a body that would do it.
_CHANGES: dict[str, dict[str, Any]] = {
    "/sandbox/jobs": {"name": "mine", "job_id": 8},
    "/sandbox/jobs/delete": {"job_id": JOB},
    "/sandbox/jobs/forbid": {"job_id": JOB},
    "/sandbox/runs": {"job_id": JOB},
    "/sandbox/faults": {"endpoint": "run-now", "kind": "status"},
    "/sandbox/limits": {"rates": {"run-now": 1}},
    "/sandbox/switches": {"history_lag_reads": 5},
    "/sandbox/reset": {},
    "/api/2.2/jobs/create": {"name": "mine"},
    "/api/2.2/jobs/delete": {"job_id": JOB},
    "/api/2.2/jobs/run-now": {"job_id": JOB},
    "/api/2.2/jobs/runs/repair": {"run_id": 1},
    "/api/2.0/workspace/mkdirs": {"path": "/mine"},
    "/api/2.0/secrets/scopes/create": {"scope": "mine"},
}
#: What a browser sends to another origin without asking first: https://fetch.spec.whatwg.org/#cors-safelisted-request-header
_SIMPLE = ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=b")


@pytest.fixture
def workspace() -> Iterator[LocalWorkspace]:
    with LocalWorkspace() as running:
        running.state.add_job("mine", job_id=JOB)
        yield running


def _state(workspace: LocalWorkspace) -> str:
    jobs, runs = list(workspace.state.jobs()), list(workspace.state.runs())
    steering = workspace.faults.rules(), dict(workspace.limits.rates), workspace.switches.describe()
    headers = _bearer(workspace)
    scopes = requests.get(f"{workspace.host}/api/2.0/secrets/scopes/list", headers=headers, timeout=10).text
    files = requests.get(f"{workspace.host}/api/2.0/workspace/list?path=/", headers=headers, timeout=10).text
    return repr((jobs, runs, steering, scopes, files))


def _bearer(workspace: LocalWorkspace) -> dict[str, str]:
    return {"Authorization": f"Bearer {workspace.token}"}


@pytest.mark.parametrize("path", _CHANGES)
def test_a_get_changes_nothing_even_with_the_token(workspace: LocalWorkspace, path: str) -> None:
    before = _state(workspace)
    for method in ("GET", "HEAD", "OPTIONS"):
        requests.request(
            method,
            workspace.host + path,
            params=_CHANGES[path],
            json=_CHANGES[path],
            headers=_bearer(workspace),
            timeout=10,
        )
    assert _state(workspace) == before
    assert not workspace.log.count("run-now", effect=True)


@pytest.mark.parametrize("path", _CHANGES)
def test_a_page_on_the_internet_changes_nothing(workspace: LocalWorkspace, path: str) -> None:
    before = _state(workspace)
    for kind in _SIMPLE:
        headers = {"Origin": "https://evil.example.com", "Content-Type": kind}
        answer = requests.post(workspace.host + path, json=_CHANGES[path], headers=headers, timeout=10)
        assert answer.status_code == 401
        assert not [name for name in answer.headers if name.lower().startswith("access-control-")]
    asked = {"Origin": "https://evil.example.com", "Access-Control-Request-Headers": "authorization"}
    preflight = requests.options(workspace.host + path, headers=asked, timeout=10)
    assert not [name for name in preflight.headers if name.lower().startswith("access-control-")]
    assert _state(workspace) == before


@pytest.mark.parametrize(
    "host",
    ["evil.example.com", "127.0.0.1.example.com", "localhost.evil.example", "[::2]", "127.0.0.1@evil"],
)
@pytest.mark.parametrize("path", ["/", "/sandbox/log", "/api/2.2/jobs/list", "/oidc/v1/token"])
def test_a_name_that_was_pointed_here_is_refused(workspace: LocalWorkspace, host: str, path: str) -> None:
    answer = requests.get(workspace.host + path, headers={**_bearer(workspace), "Host": host}, timeout=10)
    assert (answer.status_code, answer.text) == (400, "Invalid host header")


def test_a_page_shows_no_token(workspace: LocalWorkspace) -> None:
    answer = requests.get(workspace.host, timeout=10)
    assert answer.status_code == 200
    assert workspace.token not in answer.text


@pytest.mark.chaos
def test_all_of_up_listens_on_loopback_and_shows_no_token(tmp_path: Path) -> None:
    folder = tmp_path / "sandbox"
    command = [sys.executable, "-m", "pm_dagster.cli", "sandbox", "up", "--dir", str(folder), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            assert process.stdout is not None
            ui = ""
            while "Ctrl-C" not in (line := process.stdout.readline()):
                assert line, "it ended"
                ui = line.split()[-1] if line.startswith("Dagster UI") else ui
            family = _descendants(process.pid)
            assert len(family) > 5
            listening = {address for pid in family for address in _listening(pid)}
            assert listening
            assert [address for address in listening if not ipaddress.ip_address(address).is_loopback] == []
            token = _token(folder)
            assert [pid for pid in family if token in _read(pid, "cmdline")] == []
            assert _readable_by_others(folder, token) == []
            _assert_own_pages_only(ui)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=60)


def _assert_own_pages_only(ui: str) -> None:
    """Of Dagster's UI: a mutation that any page could send is refused, its own is not."""
    change = {"query": "mutation{setNuxSeen}"}
    assert requests.get(f"{ui}/graphql", params=change, timeout=30).status_code == 403
    for origin, status in (("https://evil.example.com", 403), (ui, 200)):
        answer = requests.post(f"{ui}/graphql", json=change, headers={"Origin": origin}, timeout=30)
        assert answer.status_code == status
    assert requests.get(ui, timeout=30).status_code == 200


def _token(folder: Path) -> bytes:
    command = [sys.executable, "-m", "pm_dagster.cli", "sandbox", "env", "--dir", str(folder)]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    (line,) = [line for line in said.splitlines() if "DATABRICKS_TOKEN=" in line]
    return line.partition("=")[2].strip("'\"").encode()


def _descendants(pid: int) -> list[int]:
    children = [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in _children(task)]
    return [pid, *(each for child in children for each in _descendants(child))]


def _children(task: Path) -> list[str]:
    return (task / "children").read_text().split()


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def _listening(pid: int) -> Iterator[str]:
    """The addresses of the TCP sockets on which a process listens: proc(5), /proc/net/tcp."""
    try:
        links = [str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir()]
    except OSError:
        return
    for name in ("tcp", "tcp6"):
        for line in _read(pid, f"net/{name}").decode().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in links:
                yield _address(fields[1].partition(":")[0])


def _address(text: str) -> str:
    """Words of 32 bits in the machine's order."""
    raw = b"".join(
        bytes.fromhex(text[at : at + 8])[:: 1 if sys.byteorder == "big" else -1] for at in range(0, len(text), 8)
    )
    return socket.inet_ntop(socket.AF_INET6 if len(raw) == 16 else socket.AF_INET, raw)


def _readable_by_others(folder: Path, token: bytes) -> list[str]:
    """Files with the token in them that not only their owner can get at."""
    found = []
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and token in path.read_bytes():
            chain = [path, *(each for each in path.parents if each.is_relative_to(folder))]
            if all(each.stat().st_mode & (stat.S_IROTH | stat.S_IXOTH) for each in chain):
                found.append(str(path))
    return found
