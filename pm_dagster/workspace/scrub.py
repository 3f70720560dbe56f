"""Takes secrets out of text before it is logged, stored or shown.

Put here: what is masked. Keep out: which secrets there are; ``pm_dagster.credentials`` tells them when it reads them,
because a secret can turn up in a text that knows nothing of where it came from.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

MASK = "***"
_BEARER = re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]+")
#: The forms of Databricks personal access tokens and of JSON web tokens.
_TOKENS = re.compile(r"\b(dapi[a-z0-9-]{16,}|eyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*)")
_SHORTEST_SECRET = 4
#: The secrets in use in this process, the last one of each name: only to be masked, never to be used again.
_in_use: dict[str, str] = {}


def mask_from_now_on(name: str, secret: str) -> None:
    """Mask ``secret`` in every text from now on, until another one takes its ``name``."""
    _in_use[name] = secret


def scrubbed(text: str, secrets: Iterable[str | None] = ()) -> str:
    """``text`` without the secrets given or in use, and without anything that has the form of a credential."""
    known = [secret for secret in (*secrets, *_in_use.values()) if secret and len(secret) >= _SHORTEST_SECRET]
    # The longest first: one that contains another would be left in part.
    for secret in sorted(known, key=len, reverse=True):
        text = text.replace(secret, MASK)
    return _TOKENS.sub(MASK, _BEARER.sub(rf"\1 {MASK}", text))
