"""Takes secrets out of text before it is logged, stored or shown."""

from __future__ import annotations

import re
from collections.abc import Iterable

MASK = "***"
_BEARER = re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]+")
#: The forms of Databricks personal access tokens and of JSON web tokens.
_TOKENS = re.compile(r"\b(dapi[a-z0-9-]{16,}|eyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*)")
_SHORTEST_SECRET = 4


def scrubbed(text: str, secrets: Iterable[str | None] = ()) -> str:
    """``text`` without the given secrets and without anything that has the form of a credential."""
    known = [secret for secret in secrets if secret and len(secret) >= _SHORTEST_SECRET]
    # The longest first: one that contains another would be left in part.
    for secret in sorted(known, key=len, reverse=True):
        text = text.replace(secret, MASK)
    return _TOKENS.sub(MASK, _BEARER.sub(rf"\1 {MASK}", text))
