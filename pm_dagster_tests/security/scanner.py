"""Finds planted secrets in whatever a run leaves behind, in every form in which a program may have written them.

Put here: the forms, and how files are read. Keep out: what leaves files. It knows nothing of how we mask.
"""

from __future__ import annotations

import base64
import gzip
import html
import json
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from urllib.parse import quote, quote_plus

#: A piece of a secret that is long enough to be no accident.
PIECE = 12


def forms(secret: str) -> Mapping[str, bytes]:
    """A secret as programs write it, by the name of the form."""
    raw = secret.encode()
    written = {
        "plain": secret,
        "percent-encoded": quote(secret, safe=""),
        "percent-encoded in lower case": _lower_escapes(quote(secret, safe="")),
        "percent-encoded path": quote(secret),
        "form-encoded": quote_plus(secret),
        "JSON": json.dumps(secret)[1:-1],
        "JSON in UTF-8": json.dumps(secret, ensure_ascii=False)[1:-1],
        "JSON within JSON": json.dumps(json.dumps(secret))[3:-3],
        "Python": repr(secret)[1:-1],
        "Python bytes": repr(raw)[2:-1],
        "HTML": html.escape(secret),
        "SQL": secret.replace("'", "''"),
        "connection string": secret.replace("\\", "\\\\").replace("'", "\\'"),
        "hexadecimal": raw.hex(),
    }
    found = {name: text.encode() for name, text in written.items()}
    for before in range(3):
        found[f"base64 behind {before}"] = _inside(raw, before)
        found[f"base64 for URLs behind {before}"] = _inside(raw, before).translate(bytes.maketrans(b"+/", b"-_"))
    return found


def pieces(secret: str) -> Iterator[bytes]:
    """Every piece of a long secret."""
    if len(secret) > PIECE:
        for start in range(len(secret) - PIECE + 1):
            yield secret[start : start + PIECE].encode()


def _lower_escapes(text: str) -> str:
    parts = text.split("%")
    return "%".join([parts[0], *(part[:2].lower() + part[2:] for part in parts[1:])])


def _inside(raw: bytes, before: int) -> bytes:
    """The characters of base64 that depend on the secret alone, when so many bytes stand before it."""
    encoded = base64.b64encode(b"\0" * before + raw)
    first = (before * 8 + 5) // 6
    last = (before + len(raw)) * 8 // 6
    return encoded[first:last]


class Scanner:
    """Knows secrets by name and looks for them."""

    def __init__(self, secrets: Mapping[str, str]) -> None:
        self._wanted: dict[bytes, str] = {}
        for name, secret in secrets.items():
            for piece in pieces(secret):
                self._wanted[piece] = f"{name}, a piece"
            for form, text in forms(secret).items():
                self._wanted[text] = f"{name}, {form}"

    def found_in(self, content: bytes | str) -> set[str]:
        """The secrets in a text, each with its form."""
        raw = content.encode() if isinstance(content, str) else content
        return {name for text, name in self._wanted.items() if text in raw}

    def found_under(self, folder: Path) -> dict[str, set[str]]:
        """The same for every file below a folder, archives unpacked, and for the names of the files."""
        found = {str(path): self.found_in(content) for path, content in _files(folder)}
        return {path: names for path, names in found.items() if names}


def _files(folder: Path) -> Iterator[tuple[Path, bytes]]:
    for path in sorted(folder.rglob("*")):
        yield path / "(its name)", str(path.relative_to(folder)).encode()
        if path.is_file() and not path.is_symlink():
            yield from _contents(path)


def _contents(path: Path) -> Iterable[tuple[Path, bytes]]:
    content = path.read_bytes()
    yield path, content
    if content.startswith(b"\x1f\x8b"):
        yield path / "(unpacked)", gzip.decompress(content)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            yield from [(path / name, archive.read(name)) for name in archive.namelist()]
