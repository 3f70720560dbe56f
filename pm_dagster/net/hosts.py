"""Which hosts are on this machine."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit


def is_here(name: str) -> bool:
    """True for localhost and for loopback addresses in their usual forms, and for no name that merely looks so."""
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


def is_plainly_here(url: str | None) -> bool:
    """True for a URL without TLS on this machine: what goes there must not go to a proxy on another one instead."""
    parts = urlsplit(url or "")
    return parts.scheme == "http" and is_here(parts.hostname or "")
