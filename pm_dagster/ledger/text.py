"""Text from outside, as Postgres can hold it."""

from __future__ import annotations

import json

from psycopg2 import extensions
from psycopg2.extensions import cursor as Cursor  # noqa: N812 the driver's class has a lower-case name

#: The longest reason or detail that is kept.
TEXT_LIMIT = 2000
#: What such a database holds are bytes of any encoding: ours.
_NO_ENCODING = "SQL_ASCII"


def storable(text: str) -> str:
    """``text``, cut, without what no JSON of Postgres holds: NUL, and half a surrogate pair, which JSON may carry."""
    return text[:TEXT_LIMIT].replace("\x00", "").encode("utf-8", "replace").decode("utf-8")


def as_json(cursor: Cursor, value: object) -> str:
    """The value as JSON for this cursor's database, with ? for characters that its encoding lacks."""
    name = cursor.connection.get_parameter_status("server_encoding")
    codec = "utf-8" if name in (None, _NO_ENCODING) else extensions.encodings.get(name, "utf-8")
    return json.dumps(value, ensure_ascii=False).encode(codec, "replace").decode(codec)
