"""The scanner finds what is planted, wherever and however it was written, and nothing else."""

from __future__ import annotations

import base64
import gzip
import html
import json
import re
import sqlite3
import urllib.parse
import zipfile
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from pm_dagster_tests.security.scanner import Scanner

SECRET = "Zq'7 @/:%+\"é\\k9&w~Lm4"


def _base64(before: int, secret: str) -> str:
    return base64.b64encode(b"u" * before + secret.encode() + b"!").decode()


_WRITERS: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "in a URL": lambda s: f"postgresql://me:{urllib.parse.quote(s, safe='')}@host/db",
    "in a URL, lower case": lambda s: re.sub("%..", lambda code: code[0].lower(), urllib.parse.quote(s, safe="")),
    "in a form": lambda s: urllib.parse.urlencode({"a": 1, "password": s}),
    "in JSON": lambda s: json.dumps({"message": f"token {s} is bad"}),
    "in JSON in JSON": lambda s: json.dumps({"body": json.dumps({"x": s})}),
    "in JSON, UTF-8": lambda s: json.dumps([s], ensure_ascii=False),
    "in an exception": lambda s: repr(ValueError(s)),
    "in bytes": lambda s: repr(b"x" + s.encode()),
    "in HTML": lambda s: f"<pre>{html.escape(s)}</pre>",
    "in SQL": lambda s: "ALTER ROLE x PASSWORD '" + s.replace("'", "''") + "'",
    "in a connection string": lambda s: "password='" + s.replace("\\", "\\\\").replace("'", "\\'") + "'",
    "in hexadecimal": lambda s: s.encode().hex(),
    "cut at its end": lambda s: s[:14],
    "cut at its beginning": lambda s: s[-14:],
    "cut in the middle": lambda s: s[3:16],
    **{f"base64 behind {before}": partial(_base64, before) for before in range(7)},
    "base64 for URLs": lambda s: base64.urlsafe_b64encode(b":" + s.encode()).decode(),
}


@pytest.mark.parametrize("writer", _WRITERS)
def test_every_form_is_found(writer: str) -> None:
    assert Scanner({"it": SECRET}).found_in(f"before {_WRITERS[writer](SECRET)} after")


def test_what_is_no_secret_is_not_found() -> None:
    text = json.dumps({"message": "nothing to see", "url": "postgresql://me:***@host/db", "k9": "Lm4", "Zq'7": 1})
    assert Scanner({"it": SECRET}).found_in(text) == set()


def test_files_of_every_kind_are_read(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "log.txt").write_text(f"x {SECRET}", encoding="utf-8")
    (tmp_path / "packed.gz").write_bytes(gzip.compress(SECRET.encode()))
    with zipfile.ZipFile(tmp_path / "report.xlsx", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("xl/sheet.xml", html.escape(SECRET))
    with closing(sqlite3.connect(tmp_path / "events.db")) as database:
        database.execute("CREATE TABLE t (x)")
        database.execute("INSERT INTO t VALUES (?)", (json.dumps(SECRET),))
        database.commit()
    (tmp_path / "clean.txt").write_text("clean")
    (tmp_path / urllib.parse.quote(SECRET, safe="")).mkdir()
    found = Scanner({"it": SECRET}).found_under(tmp_path)
    assert len(found) == 5, found
