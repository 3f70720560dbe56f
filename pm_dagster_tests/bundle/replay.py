"""Sends recorded requests to a workspace and compares its answers with the recorded ones.

Put here: reading the record, sending, comparing. Keep out: what is replayed against what. The record,
``cli_requests.jsonl``, is every request of the Databricks CLI 1.13.0 in order, with the answer that satisfied it:
validate, deploy, deploy again, run, summary, edit and deploy, destroy of a plain target; then deploy, deploy again,
destroy of one with permissions and run_as. User, host and workspace id are placeholders, a body of bytes is its size.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import requests

from pm_dagster.sandbox.workspace import LocalWorkspace
from pm_dagster.sandbox.workspace.model import USER_NAME, WORKSPACE_ID

RECORD = Path(__file__).with_name("cli_requests.jsonl")
Json = dict[str, Any]

# How the permissions of an object name it.
_OBJECT = re.compile(r"^(/jobs/|/directories/)(\d+)$")
_IMPORT = "/api/2.0/workspace-files/import-file/"
_IDS = ("job_id", "run_id", "object_id", "number_in_job")
# Words for people, times and the like: their type is all that a client may rely on.
_ANY_VALUE = ("id", "created_time", "message", "state_message", "run_page_url", "logs")
# How far a run is when somebody looks depends on the machine.
_ON_ITS_WAY = ("PENDING", "RUNNING", "TERMINATED")
# The CLI reads it back and compares it with what it would send: one key more is a change to deploy.
_EXACT = ("settings",)
# The file that the recorded job runs has as many bytes as the recorded one.
_PROGRAM = b"print('hi')\n"


@dataclass(frozen=True)
class Exchange:
    """One recorded request and its answer."""

    number: int
    method: str
    path: str
    query: dict[str, str]
    body: Any
    status: int
    answer: Any

    @property
    def ends_a_run(self) -> bool:
        """Whether the recorded client saw here that its run was over."""
        return self.path.endswith("/runs/get") and self.answer["state"]["life_cycle_state"] == "TERMINATED"


@dataclass
class Replay:
    """A client with the CLI's memory: which id the workspace gave where the record has another, what was uploaded."""

    workspace: LocalWorkspace
    ids: dict[int, int] = field(default_factory=dict)
    uploaded: dict[str, bytes] = field(default_factory=dict)
    session: requests.Session = field(default_factory=requests.Session)

    def send(self, exchange: Exchange) -> requests.Response:
        """The request as the CLI sends it, with the ids of this workspace."""
        path, body = self._path(exchange.path), self._body(exchange)
        return self.session.request(
            exchange.method,
            self.workspace.host + path,
            params={name: self._number(value) for name, value in exchange.query.items()},
            data=body if isinstance(body, bytes) else None,
            json=body if isinstance(body, dict) else None,
            headers={"Authorization": f"Bearer {self.workspace.token}"},
            timeout=30,
        )

    def check(self, exchange: Exchange, answer: requests.Response) -> None:
        """Fail where the answer is not what the recorded client went on with."""
        where = f"request {exchange.number}, {exchange.method} {exchange.path}"
        assert answer.status_code == exchange.status, f"{where}: {answer.text}"
        if isinstance(exchange.answer, str):
            assert answer.content == self.uploaded[exchange.query["path"]], where
        else:
            self._compare(exchange.answer, answer.json(), where)

    def _compare(self, expected: Any, actual: Any, where: str, name: str = "") -> None:  # noqa: ANN401  # JSON
        assert type(actual) is type(expected), f"{where}: {name} is {actual!r}"
        if name in _EXACT:
            assert actual == self._with_ids(expected), where
        elif isinstance(expected, dict):
            assert expected.keys() <= actual.keys(), f"{where}: {name} lacks {expected.keys() - actual.keys()}"
            for key, value in expected.items():
                self._compare(value, actual[key], where, key)
        elif isinstance(expected, list):
            assert len(actual) >= len(expected), f"{where}: {name} is too short"
            for one, other in zip(expected, actual, strict=False):
                self._compare(one, other, where, name)
        elif name in _IDS and isinstance(expected, int):
            # The recorded workspace gave every file the id 5.
            assert expected == 5 or self.ids.setdefault(expected, actual) == actual, f"{where}: another {name}"
        elif name == "life_cycle_state" and expected == "RUNNING":
            assert actual in _ON_ITS_WAY, f"{where}: {name} is {actual}"
        elif name not in _ANY_VALUE:
            assert actual == self._with_ids(expected), f"{where}: {name}"

    def _path(self, path: str) -> str:
        if path.startswith(_IMPORT):
            return _IMPORT + quote(path.removeprefix(_IMPORT), safe="")
        return re.sub(r"(?<=/)\d+$", lambda found: self._number(found[0]), path)

    def _body(self, exchange: Exchange) -> Any:  # noqa: ANN401  # JSON or bytes
        size = re.fullmatch(r"<(\d+) bytes>", exchange.body) if isinstance(exchange.body, str) else None
        if size is None:
            return self._with_ids(exchange.body)
        noise = hashlib.shake_256(str(exchange.number).encode()).digest(int(size[1]))
        content = _PROGRAM if exchange.path.endswith(".py") else noise
        assert len(content) == int(size[1])
        if exchange.status == requests.codes.ok:
            self.uploaded["/" + exchange.path.removeprefix(_IMPORT)] = content
        return content

    def _number(self, text: str) -> str:
        return str(self.ids.get(int(text), text)) if text.isdigit() else text

    def _with_ids(self, value: Any) -> Any:  # noqa: ANN401  # JSON
        if isinstance(value, dict):
            return {
                key: self.ids.get(each, each) if key in _IDS and isinstance(each, int) else self._with_ids(each)
                for key, each in value.items()
            }
        if isinstance(value, list):
            return [self._with_ids(each) for each in value]
        if isinstance(value, str):
            return _OBJECT.sub(lambda found: found[1] + self._number(found[2]), value)
        return value


def recorded(host: str) -> list[Exchange]:
    """The record, with user, host and workspace id of the local workspace."""
    text = RECORD.read_text(encoding="utf-8")
    for name, value in (("user", USER_NAME), ("host", host), ("workspace_id", WORKSPACE_ID)):
        text = text.replace(f"${{{name}}}", value)
    return [Exchange(number, **json.loads(line)) for number, line in enumerate(text.splitlines(), start=1)]
