"""Takes secrets out of text before it is logged, stored or shown.

The secrets that are read (``config.credentials``) are registered for the whole process. Besides the loggers this is the
only state that a process has once: an error of a library or a line of a traceback can hold a secret and knows nothing
of the settings, the workspace or the database that it came from. Nothing reads a secret back from here.
"""

from __future__ import annotations

import base64
import html
import json
import re
import threading
from collections.abc import Iterable, Iterator
from functools import lru_cache
from urllib.parse import quote, quote_plus

MASK = "***"
_BEARER = re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]+")
#: The form of Databricks personal access tokens.
_ACCESS_TOKEN = re.compile(r"\bdapi[a-z0-9-]{16,}")
#: That of JSON web tokens. The first line looks once at each run of characters whether two dots follow as they must; a
#: search from every "eyJ" in it would look at a long one again and again.
_WEB_TOKEN = re.compile(
    r"(?<![A-Za-z0-9_-])(?=[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.)"
    r"([A-Za-z0-9_-]*?)\beyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*"
)
_SHORTEST_SECRET = 4
#: Of a secret at least this long, a beginning or end of ``_PIECE`` characters or more is masked as well: other programs
#: may have cut the text. A shorter secret may share as much with a word that people have to read.
_LONG_SECRET, _PIECE = 20, 8
#: The secrets that were registered, the newest last. Rotated ones fall out when as many came after them: every text
#: is searched for all.
_registered: dict[str, None] = {}
_MOST_REGISTERED = 64
_registering = threading.Lock()


def register_secret(secret: str) -> None:
    """Mask ``secret`` in every text from now on, whichever of several workspaces or databases it belongs to."""
    with _registering:
        _registered.pop(secret, None)
        _registered[secret] = None
        for oldest in list(_registered)[:-_MOST_REGISTERED]:
            del _registered[oldest]


def scrubbed(text: str, secrets: Iterable[str | None] = ()) -> str:
    """``text`` without the secrets given or registered, and without anything that has the form of a credential."""
    known = {secret for secret in (*secrets, *tuple(_registered)) if secret and len(secret) >= _SHORTEST_SECRET}
    # The longest first: one that contains another would be left in part.
    for written in sorted({form for secret in known for form in _forms(secret)}, key=len, reverse=True):
        text = text.replace(written, MASK)
    for secret in known:
        text = _without_ends(text, secret)
    text = _WEB_TOKEN.sub(rf"\1{MASK}", _BEARER.sub(rf"\1 {MASK}", text))
    return _ACCESS_TOKEN.sub(MASK, text)


@lru_cache(maxsize=2 * _MOST_REGISTERED)
def _forms(secret: str) -> frozenset[str]:
    """A secret as other programs write it: an error can repeat what was sent, in the form in which it was sent."""
    raw = secret.encode("utf-8", "surrogateescape")
    escaped = quote(raw, safe="")
    written = {
        secret,
        escaped,
        re.sub("%..", lambda code: code[0].lower(), escaped),
        quote(raw),
        quote_plus(raw),
        json.dumps(secret)[1:-1],
        json.dumps(secret, ensure_ascii=False)[1:-1],
        json.dumps(json.dumps(secret))[3:-3],
        repr(secret)[1:-1],
        repr(raw)[2:-1],
        html.escape(secret),
        secret.replace("'", "''"),
        secret.replace("\\", "\\\\").replace("'", "\\'"),
        raw.hex(),
    }
    return frozenset(written | set(_in_base64(raw)))


def _in_base64(raw: bytes) -> Iterator[str]:
    """The characters that depend on the secret alone, for each place at which it can stand in what is encoded."""
    for before in range(3):
        encoded = base64.b64encode(b"\0" * before + raw).decode()
        inside = encoded[(before * 8 + 5) // 6 : (before + len(raw)) * 8 // 6]
        if len(inside) >= _PIECE:
            yield inside
            yield inside.translate(str.maketrans("+/", "-_"))


def _without_ends(text: str, secret: str) -> str:
    """``text`` without a beginning or an end of a long secret."""
    if len(secret) < _LONG_SECRET:
        return text
    # In the reversed text an end is a beginning, and the mask reads the same.
    return _without_beginnings(_without_beginnings(text, secret)[::-1], secret[::-1])[::-1]


def _without_beginnings(text: str, secret: str) -> str:
    """In one pass: a long text may hold many of them."""
    start, kept, done = secret[:_PIECE], [], 0
    while (at := text.find(start, done)) >= 0:
        kept += [text[done:at], MASK]
        done = at + _PIECE
        while done - at < len(secret) and text[done : done + 1] == secret[done - at]:
            done += 1
    return "".join([*kept, text[done:]])
