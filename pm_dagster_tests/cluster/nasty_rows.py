"""A view whose columns have every type that another client maps in its own way, and rows that show it.

Put here: the view, its rows, the settings for it. Keep out: who reads it.
"""

from __future__ import annotations

from contextlib import closing

import psycopg2

#: Columns that become job parameters.
COLUMNS = (
    "run_id", "file_name", "cntrt_id", "big", "numeric_free", "numeric_short", "flag", "j", "jb", "words", "numbers",
    "u", "mood", "at_zone", "at_none", "a_day", "an_hour", "span", "bytes", "fixed", "address", "mask", "price",
    "real4", "real8", "pair", "a name", "pér%cent",
)  # fmt: skip
SETTINGS = {
    "PM_WAIT_VIEW": "nasty",
    "PM_COLUMN_ORDER": "at_zone",
    "PM_JOB_PARAMETERS": ",".join(f"P{number}={name}" for number, name in enumerate(COLUMNS)),
}
_TABLE = """
CREATE TYPE mood AS ENUM ('calm', 'with "quotes"');
CREATE TYPE pair AS (a int, b text);
CREATE TABLE nasty_values (
    run_id bigint, wkf_job_id numeric(30), wkf_job_run_id bigint, run_sttus_name text DEFAULT 'WAITING', file_name text,
    cntrt_id bigint, big numeric(38), numeric_free numeric, numeric_short numeric(10, 2), flag boolean, j json,
    jb jsonb, words text[], numbers bigint[], u uuid, mood mood, at_zone timestamptz, at_none timestamp,
    a_day date, an_hour time, span interval, bytes bytea, fixed char(12), address inet, mask cidr, price money,
    real4 real, real8 double precision, pair pair, "a name" text, "pér%cent" text);
CREATE VIEW nasty AS SELECT * FROM nasty_values;
"""
_ROWS = """
INSERT INTO nasty_values VALUES
    (9007199254740993, 9223372036854775807, 9007199254740995, 'WAITING', E'it''s "quoted"\\\\ \\n\\t $1 %s ? {x}', 1,
     12345678901234567890123456789012345678, 0.1234567890123456789012345678901234567890, 12.50, true,
     '{"b": [1, 2.50],   "a": null}', '{"b": [1, 2.50], "a": null}', '{"a,b",NULL,"","{}","q\\"q"}',
     '{9007199254740993,NULL}', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', 'with "quotes"',
     '2026-03-29 01:30:00.123456+02', '2026-03-29 02:30:00.123456', '0001-01-01', '23:59:59.999999',
     '-1 year 3 days -00:00:01', '\\x00ff27', 'padded', '10.0.0.1', '10.0.0.0/8', 12.34, 0.1, 0.1, '(,"x y")',
     'a', 'b'),
    (9007199254740994, 1001, NULL, 'WAITING', 'поставка 納品 🚚.csv', NULL, -1, 1e20, NULL, false, 'null', '"text"',
     '{}', '{}', NULL, 'calm', '2026-03-29 01:30:00.123455+02', '1969-12-31 23:59:59', '9999-12-31', '00:00', '0',
     '', '', '::1', '::/0', -1, 'NaN', 'Infinity', '(,)', '', ''),
    (3, NULL, NULL, 'WAITING', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
     NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL),
    (4, 1001, 77, 'WAITING', E' spaces \\u200b and no end ', 0, 0, 0, 0, true, '[]', '[]', '{x}', '{1}', NULL, NULL,
     '2026-03-29 01:30:00.123455+02', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 1e30, 1e300,
     NULL, NULL, NULL),
    (4, 1001, 77, 'RUNNING', 'not waiting', 0, 0, 0, 0, true, '[]', '[]', '{x}', '{1}', NULL, NULL,
     '2020-01-01 00:00+00', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL),
    (5, 1001, NULL, 'WAITING', 'in the table too', 0, 0, 0, 0, true, NULL, NULL, NULL, NULL, NULL, NULL,
     '1900-01-01 00:00:00+00', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
INSERT INTO mm_run_plc (run_id, run_sttus_name)
SELECT DISTINCT run_id, 'WAITING' FROM nasty_values;
"""


def lay_out(url: str) -> None:
    """Make the view and its rows in a database that has the control schema."""
    with closing(psycopg2.connect(url)) as connection, connection, connection.cursor() as cursor:
        cursor.execute(_TABLE)
        cursor.execute(_ROWS)
