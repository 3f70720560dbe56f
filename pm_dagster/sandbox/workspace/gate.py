"""What every API request passes, in this order: token, limit, fault before, handler, state file, fault after, log."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from pm_dagster.sandbox.workspace import answers
from pm_dagster.sandbox.workspace.answers import Answer
from pm_dagster.sandbox.workspace.call import Reply
from pm_dagster.sandbox.workspace.errors import ApiError
from pm_dagster.sandbox.workspace.faults import Fault, Faults
from pm_dagster.sandbox.workspace.files import WorkspaceFiles
from pm_dagster.sandbox.workspace.identity import Tokens
from pm_dagster.sandbox.workspace.limits import Limits
from pm_dagster.sandbox.workspace.permissions import Permissions
from pm_dagster.sandbox.workspace.request_log import RequestLog, hash_of, told
from pm_dagster.sandbox.workspace.secret_scopes import SecretScopes
from pm_dagster.sandbox.workspace.state import WorkspaceState
from pm_dagster.sandbox.workspace.switches import Switches

_LOG = logging.getLogger(__name__)
_MAX_BODY = 10 * 1024 * 1024


@dataclass
class Parts:
    """The pieces that make up a workspace."""

    state: WorkspaceState
    tokens: Tokens
    switches: Switches
    files: WorkspaceFiles
    secrets: SecretScopes
    permissions: Permissions
    faults: Faults = field(default_factory=Faults)
    limits: Limits = field(default_factory=Limits)
    log: RequestLog = field(default_factory=RequestLog)

    def reset(self) -> None:
        """Bring everything back to the start."""
        self.state.reset()
        self.files.clear()
        self.secrets.clear()
        self.permissions.clear()
        self.tokens.revoke_issued()
        self.faults.clear()
        self.limits.clear()
        self.switches.reset()
        self.log.clear()


@dataclass
class Passage:
    """One request on its way through the gate."""

    request: Request
    endpoint: str
    raw: bytes
    size: int
    effect: bool = False
    faults: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        """Path, query and body: what a fault's ``match`` looks into."""
        return f"{self.path}\n{self.raw.decode('utf-8', 'replace')}"

    @property
    def path(self) -> str:
        """Path and query."""
        query = self.request.url.query
        return self.request.url.path + (f"?{query}" if query else "")


Handler = Callable[[Request, bytes], Reply]


class Gate:
    """Lets requests through to handlers."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def pass_through(
        self, endpoint: str, handler: Handler, scope: Scope, receive: Receive, send: Send, *, open_: bool = False
    ) -> None:
        """Answer one request; ``open_`` needs no token."""
        request = Request(scope, receive)
        began, clock = self._parts.state.clock(), time.monotonic()
        passage = Passage(request, endpoint, *await _received(request))
        answer = await self._answer(passage, handler, open_=open_)
        self._parts.log.add(
            time=began,
            seconds=time.monotonic() - clock,
            method=request.method,
            path=passage.path,
            endpoint=endpoint,
            body=told(endpoint, passage.raw),
            token_hash=hash_of(bearer(request)),
            connection="{}:{}".format(*(scope.get("client") or ("", ""))),
            status=0 if answer.cut else answer.status,
            effect=passage.effect,
            fault=", ".join(passage.faults),
        )
        await answers.send(answer, scope, receive, send)

    async def _answer(self, passage: Passage, handler: Handler, *, open_: bool) -> Answer:
        if not open_ and not self._parts.tokens.accepts(bearer(passage.request)):
            return answers.refusal(
                ApiError(401, "UNAUTHORIZED", "Credential was not sent or was of an unsupported type.")
            )
        if not self._parts.limits.allow(passage.endpoint):
            return answers.throttled(self._parts.limits.retry_after)
        fault = self._fault(passage, "before")
        if fault is not None:
            broken = await answers.broken(fault, None)
            if broken is not None:
                return broken
        answer = self._handled(passage, handler)
        fault = self._fault(passage, "after")
        if fault is not None:
            answer = await answers.broken(fault, answer) or answer
        return answer

    def _fault(self, passage: Passage, when: str) -> Fault | None:
        fault = self._parts.faults.take(passage.endpoint, when, passage.text)
        if fault is not None:
            passage.faults.append(f"{when} {fault.kind}")
        return fault

    def _handled(self, passage: Passage, handler: Handler) -> Answer:
        try:
            _check_size(passage.size)
            reply = handler(passage.request, passage.raw)
        except ApiError as refusal:
            return answers.refusal(refusal)
        except Exception:  # noqa: BLE001  # a flaw of the sandbox answers as a flaw of the service would
            _LOG.exception("the sandbox failed at %s", passage.endpoint)
            return answers.refusal(ApiError(500, "INTERNAL_SERVER_ERROR", "The sandbox itself failed; see its log."))
        finally:
            self._parts.state.flush()
        passage.effect = reply.effect
        return answers.ok(reply.body) if reply.raw is None else answers.download(reply.raw)


async def _received(request: Request) -> tuple[bytes, int]:
    """The body, as long as it is not too large, and its size; it is read to its end, or the client sees no answer."""
    kept, size = bytearray(), 0
    async for chunk in request.stream():
        size += len(chunk)
        if size <= _MAX_BODY:
            kept += chunk
    return bytes(kept) if size <= _MAX_BODY else b"", size


def _check_size(size: int) -> None:
    if size > _MAX_BODY:
        text = (
            f"The request body has {size} bytes; the local workspace takes at most {_MAX_BODY} ({_MAX_BODY >> 20} MB)."
        )
        raise ApiError(413, "MAX_REQUEST_SIZE_EXCEEDED", text)


def bearer(request: Request) -> str:
    """The bearer token of a request, empty without one."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""
