"""TLS: which hosts do without it, and why it failed, in words for people.

The reasons are read from the exceptions of Python's ssl module, wherever a library has put them.
"""

from __future__ import annotations

import ipaddress
import ssl
import traceback
from urllib.parse import urlsplit

from pm_dagster.errors import ConfigurationError
from pm_dagster.net.exception_chain import exception_chain

#: urllib3 below 2 compares host names itself, and raises this instead of ssl's own.
_OTHER_MISMATCH = "CertificateError"


def untrusted_reason(error: BaseException) -> str | None:
    """Why the other side's certificate was refused, None when it was not: then nothing was sent to it."""
    for cause in exception_chain(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return cause.verify_message.rstrip(".") or "its certificate cannot be verified"
        if type(cause).__name__ == _OTHER_MISMATCH:
            return str(cause)
    return None


def untrusted_error(host: str | None, why: str) -> ConfigurationError:
    """The error for a host whose certificate cannot be trusted; every HTTP client of ours reads that variable."""
    return ConfigurationError(
        f"no TLS with {host}, nothing was sent: {why}; check the host's name, and if its authority is your own, name"
        " the file with it in REQUESTS_CA_BUNDLE"
    )


def handshake_failure(error: BaseException) -> str | None:
    """Why the handshake failed, None when it did not.

    An error of TLS after the handshake is another matter: by then the request may have been sent, and have had its
    effect.
    """
    for cause in exception_chain(error):
        if isinstance(cause, ssl.SSLError) and _in_handshake(cause):
            return (cause.reason or type(cause).__name__).replace("_", " ").lower()
    return None


def _in_handshake(error: ssl.SSLError) -> bool:
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_code.co_name == "do_handshake" for frame, _ in frames)


def is_loopback(name: str) -> bool:
    """True for localhost and for loopback addresses in their usual forms, and for no name that merely looks so."""
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost"


def is_local_http(url: str | None) -> bool:
    """True for a URL without TLS on this machine: what goes there must not go to a proxy on another one instead."""
    parts = urlsplit(url or "")
    return parts.scheme == "http" and is_loopback(parts.hostname or "")
