"""What ``pm ... --json`` prints: the keys and types of real runs, as the tables of docs/reference/json.md."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime

from pm_dagster.config.settings import Settings
from pm_dagster.ledger.migrate import initialise
from pm_dagster.sandbox.workspace import LocalWorkspace
from pm_dagster_tests.cli.shell import JOB, UNKNOWN_JOB, Shell

#: Objects whose keys are data: columns of the owner's table, and ids of rows.
_KEYED_BY_DATA = {"control_table", "left_alone", "parameters"}
_KINDS: tuple[tuple[type, str], ...] = (
    (bool, "true or false"),
    (int, "integer"),
    (float, "number"),
    (dict, "object"),
    (list, "list"),
)
_NULL = "null"


#: Where rows of the ledger are shown; a column that may be null is so there, whether a run shows it or not.
_LEDGER_ROWS = {
    "generations[].": "entry",
    "generations[].events[].": "event",
    "dispatchers[].": "dispatcher",
    "quarantined[].": "entry",
}
_NULLABLE = """
SELECT table_name, column_name FROM information_schema.columns
WHERE table_schema = 'process_manager' AND is_nullable = 'YES'
"""


def keys_of_commands(database_url: str, workspace: LocalWorkspace) -> dict[str, dict[str, str]]:
    """By command, the type of each key of its object; ``observed`` has the arguments."""
    found = observed(database_url, workspace)
    nullable = set(Shell(database_url, workspace).sql(_NULLABLE))
    return {name: _with_nulls(paths(objects), nullable) for name, objects in found.items()}


def _with_nulls(types: Mapping[str, str], nullable: set[tuple[str, str]]) -> dict[str, str]:
    def completed(path: str, kind: str) -> str:
        place, _, column = path.rpartition(".")
        table = _LEDGER_ROWS.get(f"{place}.")
        may = (table, column) in nullable and not kind.endswith(_NULL)
        return f"{kind} or {_NULL}" if may else kind

    return {path: completed(path, kind) for path, kind in types.items()}


def observed(database_url: str, workspace: LocalWorkspace) -> dict[str, list[object]]:
    """Run every command on rows of many kinds; gives, by command, the objects that it printed.

    Args:
        database_url: A database with the control schema and no ledger.
        workspace: A workspace without jobs.
    """
    workspace.state.add_job("ingest", job_id=JOB, seconds=30.0, max_concurrent_runs=1000)
    bare = Shell(database_url, workspace)
    found: dict[str, list[object]] = {"pm init": [bare.json("init")]}
    initialise(Settings(postgres_url=database_url))
    found["pm init"].append(bare.json("init"))
    (new,) = bare.add()
    (repaired,) = bare.add_repairs(1, repairs=1)
    (unknown,) = bare.add(job_id=UNKNOWN_JOB)
    (held_back,) = bare.add()
    bare.add(job_id=None)
    bare.sql("CREATE TABLE more (run_id bigint); INSERT INTO more VALUES (900001), (NULL)")
    bare.sql(_WIDER_VIEW)
    found["pm plan"] = [bare.json("plan")]
    found["pm doctor"] = [bare.json_and_code(1, "doctor")]
    later = {"Retry-After": "3600"}
    workspace.faults.add("run-now", "status", status=429, match=f'"{held_back}"', headers=later, count=None)
    found["pm status"] = [bare.json("status")]
    found["pm dispatch"] = [bare.json("dispatch"), bare.json("dispatch")]
    found["pm status"].append(bare.json("status"))
    found["pm explain"] = [bare.json("explain", str(each)) for each in (new, repaired, unknown, held_back)]
    found["pm redrive --dry-run"] = [bare.json("redrive", str(unknown), "--dry-run")]
    found["pm redrive"] = [bare.json("redrive", str(unknown), str(new))]
    bare.sql("DELETE FROM mm_run_plc WHERE run_id = %s", (new,))
    found["pm explain"].append(bare.json("explain", str(new)))
    return {name: found[name] for name in sorted(found)}


#: A row that the table lacks can be taken by no dispatch.
_WIDER_VIEW = """
DO $$ BEGIN
  EXECUTE 'CREATE OR REPLACE VIEW mm_run_wait_vw AS ' || rtrim(pg_get_viewdef('mm_run_wait_vw'::regclass), '; ')
    || ' UNION ALL SELECT ' || (
      SELECT string_agg(CASE attname WHEN 'run_id' THEN 'more.run_id::' || format_type(atttypid, atttypmod)
                        ELSE 'NULL::' || format_type(atttypid, atttypmod) END, ', ' ORDER BY attnum)
      FROM pg_attribute WHERE attrelid = 'mm_run_wait_vw'::regclass AND attnum > 0) || ' FROM more';
END $$
"""


def paths(objects: Sequence[object]) -> dict[str, str]:
    """The type of each key, by its path such as ``rows[].run_id``, in the order of the output."""
    types: dict[str, set[str]] = {}
    for each in objects:
        for path, kind in _walk(each, ""):
            types.setdefault(path, set()).add(kind)
    first = {path: number for number, path in enumerate(types)}

    def place(path: str) -> list[int]:
        """What is inside an object or a list follows it."""
        ends = [end.start() for end in re.finditer(r"(\[\])?\.", path)] + [len(path)]
        return [first[path[:end]] for end in ends]

    return {
        path: " or ".join(sorted(types[path], key=lambda kind: (kind == _NULL, kind)))
        for path in sorted(types, key=place)
    }


def _walk(value: object, path: str) -> Iterator[tuple[str, str]]:
    if path:
        yield path, _kind(value)
    if isinstance(value, Mapping) and path.rpartition(".")[2] not in _KEYED_BY_DATA:
        for name, part in value.items():
            yield from _walk(part, f"{path}.{name}".lstrip("."))
    elif isinstance(value, list):
        for part in value:
            if isinstance(part, Mapping):
                for name, below in part.items():
                    yield from _walk(below, f"{path}[].{name}")


def _kind(value: object) -> str:
    if value is None:
        return _NULL
    for kind, word in _KINDS:
        if isinstance(value, kind):
            return word
    if isinstance(value, str) and re.match(r"\d{4}-\d\d-\d\dT", value):
        with suppress(ValueError):
            datetime.fromisoformat(value)
            return "time"
    return "text"
