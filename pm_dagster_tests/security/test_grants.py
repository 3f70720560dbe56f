"""The rights that `pm grants` prints are enough, each is needed, and none is too much."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import psycopg2
import pytest
from psycopg2 import errors

from pm_dagster.config.settings import Settings
from pm_dagster.errors import ConfigurationError, ProcessManagerError
from pm_dagster.ledger import grants
from pm_dagster.ledger.connection import connect
from pm_dagster.ledger.grants import Part
from pm_dagster.ledger.migrate import initialise
from pm_dagster_tests.ledger.postgres_control_table import PostgresControlTable
from pm_dagster_tests.security.roles import Role, dispatch_everything, doctor_is_content, read_everything, role

_COMMITTED = Path(__file__).parents[2] / "deploy" / "postgres" / "grants.sql"
_OURS = ("run_sttus_name", "wkf_job_run_id", "run_page_url", "state_msg", "msg")
_NAMES = {
    Part.MIGRATOR: "process_manager_migrator",
    Part.DISPATCHER: "process_manager_dispatcher",
    Part.READER: "process_manager_reader",
}


def _as_role(who: Role, statement: str) -> None:
    with closing(connect(who.settings)) as connection, connection.cursor() as cursor:
        cursor.execute(statement)
        connection.rollback()


def test_the_dispatcher_may_do_its_work(database: PostgresControlTable) -> None:
    with role(database, Part.DISPATCHER) as dispatcher:
        dispatch_everything(database, dispatcher.settings)


def test_the_reader_may_read(database: PostgresControlTable) -> None:
    database.add()
    dispatch_everything(database, database.settings)
    with role(database, Part.READER) as reader:
        read_everything(reader.settings)


def test_nothing_of_the_dispatchers_rights_can_be_left_out(
    database: PostgresControlTable, caplog: pytest.LogCaptureFixture
) -> None:
    superfluous, unnoticed = [], []
    with role(database, Part.DISPATCHER) as dispatcher:
        for right in dispatcher.rights:
            caplog.clear()
            database.ask("TRUNCATE process_manager.api_budget")
            with dispatcher.without(right):
                works = _works(lambda: dispatch_everything(database, dispatcher.settings))
                # Without a budget to share, a dispatch goes on by itself.
                if works and not _said_that_it_shares_nothing(caplog):
                    superfluous.append(right)
                if doctor_is_content(dispatcher.settings):
                    unnoticed.append(right)
            database.ask("DELETE FROM mm_run_plc")
        dispatch_everything(database, dispatcher.settings)
        assert doctor_is_content(dispatcher.settings)
    assert (superfluous, unnoticed) == ([], [])


def test_nothing_of_the_readers_rights_can_be_left_out(database: PostgresControlTable) -> None:
    database.add()
    superfluous = []
    with role(database, Part.READER) as reader:
        for right in reader.rights:
            with reader.without(right):
                if _works(lambda: read_everything(reader.settings)):
                    superfluous.append(right)
    assert superfluous == []


def _said_that_it_shares_nothing(caplog: pytest.LogCaptureFixture) -> bool:
    errors = [str(r.__dict__["fields"]["error"]) for r in caplog.records if r.getMessage() == "budget not shared"]
    return any("lacks a privilege: permission denied for table api_budget" in error for error in errors)


def _works(work: Callable[[], None]) -> bool:
    """False when a right is missing, which must be what the error says."""
    try:
        work()
    except ProcessManagerError as refusal:
        if not isinstance(refusal, ConfigurationError) or "lacks a privilege" not in str(refusal):
            raise
        return False
    return True


def _others(database: PostgresControlTable) -> list[str]:
    query = "SELECT attname FROM pg_attribute WHERE attrelid = 'mm_run_plc'::regclass AND attnum > 0"
    return [name for (name,) in database.ask(query) if name not in _OURS]


_CHANGES = [
    "INSERT INTO public.mm_run_plc DEFAULT VALUES",
    "DELETE FROM public.mm_run_plc",
    "TRUNCATE public.mm_run_plc",
    "ALTER TABLE public.mm_run_plc ADD COLUMN more text",
    "DROP VIEW public.mm_run_wait_vw",
    "UPDATE public.mm_run_wait_vw SET cntrt_id = 0",
    "CREATE TABLE public.mine (a int)",
    "CREATE TABLE process_manager.mine (a int)",
    "CREATE SCHEMA mine",
    "CREATE TRIGGER mine BEFORE UPDATE ON public.mm_run_plc EXECUTE FUNCTION suppress_redundant_updates_trigger()",
    "SELECT FROM public.mm_cntrt_lkp",
    "SELECT FROM public.mm_wkf_lkp",
    "SELECT FROM public.mm_task_run_plc",
    "UPDATE process_manager.identity SET environment = gen_random_uuid()",
    "DELETE FROM process_manager.identity",
    "UPDATE process_manager.alembic_version SET version_num = '9999'",
    "DELETE FROM process_manager.dispatcher",
    "DELETE FROM process_manager.entry",
    "TRUNCATE process_manager.entry CASCADE",
    "UPDATE process_manager.event SET detail = ''",
    "DELETE FROM process_manager.event",
    "DELETE FROM process_manager.api_budget",
    "TRUNCATE process_manager.api_budget",
    "DROP TABLE process_manager.event",
    "ALTER TABLE process_manager.entry DISABLE TRIGGER ALL",
    "SELECT setval('process_manager.dispatcher_dispatcher_id_seq', 1)",
    "COPY public.mm_run_plc TO PROGRAM 'cat'",
    "SELECT pg_read_file('postgresql.conf')",
]
_WRITES = [
    "UPDATE public.mm_run_plc SET run_sttus_name = 'WAITING'",
    "INSERT INTO process_manager.dispatcher (actor, liveness) VALUES ('x', 'lock')",
    "UPDATE process_manager.dispatcher SET actor = ''",
    "UPDATE process_manager.entry SET reason = ''",
    "INSERT INTO process_manager.event (kind) VALUES ('x')",
    "INSERT INTO process_manager.api_budget (workspace) VALUES ('x')",
    "UPDATE process_manager.api_budget SET record = NULL",
    "SELECT nextval('process_manager.dispatcher_dispatcher_id_seq')",
    "SELECT FROM public.mm_run_plc FOR UPDATE",
]


@pytest.mark.parametrize("part", [Part.DISPATCHER, Part.READER])
def test_a_role_may_do_no_more(database: PostgresControlTable, part: Part) -> None:
    statements = [*_CHANGES, *(_WRITES if part is Part.READER else ())]
    statements += [f"UPDATE public.mm_run_plc SET {name} = NULL" for name in _others(database)]  # noqa: S608 our names
    with role(database, part) as somebody:
        for statement in statements:
            with pytest.raises((errors.InsufficientPrivilege, errors.ObjectNotInPrerequisiteState)):
                _as_role(somebody, statement)


def test_the_migrator_makes_the_ledger_and_touches_nothing_else(database_url: str) -> None:
    with closing(psycopg2.connect(database_url)) as owner, owner.cursor() as cursor:
        owner.autocommit = True
        cursor.execute("CREATE ROLE the_migrator LOGIN")
        try:
            cursor.execute(grants.script(owner, Settings(postgres_url=database_url), Part.MIGRATOR, "the_migrator"))
            migrator = Settings(postgres_url=database_url, postgres_user="the_migrator")
            assert initialise(migrator).after == initialise(migrator).before
            with closing(connect(migrator)) as theirs, pytest.raises(errors.InsufficientPrivilege):
                theirs.cursor().execute("SELECT FROM mm_run_plc")
        finally:
            cursor.execute("DROP OWNED BY the_migrator CASCADE")
            cursor.execute("DROP ROLE the_migrator")


def _rendered(database: PostgresControlTable) -> str:
    with closing(connect(database.settings)) as connection:
        parts = [grants.script(connection, database.settings, part, name) for part, name in _NAMES.items()]
    head = "-- Written by: pm grants --for PART --role NAME, for the default names. A test keeps it so.\n\n"
    return head + "\n".join(parts)


def test_the_committed_script_is_what_the_command_prints(database: PostgresControlTable) -> None:
    assert _COMMITTED.read_text(encoding="utf-8") == _rendered(database)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("ALTER VIEW mm_run_wait_vw SET (security_invoker = true)", "reads with the caller's rights"),
        ("ALTER TABLE mm_run_plc ENABLE ROW LEVEL SECURITY", "row-level security"),
        ("GRANT CREATE ON SCHEMA public TO PUBLIC", 'REVOKE CREATE ON SCHEMA "public" FROM PUBLIC'),
        ("SELECT", ""),
    ],
)
def test_what_grants_cannot_do_is_said(database: PostgresControlTable, change: str, words: str) -> None:
    before = _rendered(database)
    database.ask(change)
    assert words in _rendered(database)
    assert bool(words) == (_rendered(database) != before)


@pytest.mark.parametrize("name", ['x"; DROP TABLE mm_run_plc; --', "x\nDROP TABLE mm_run_plc;", "x'"])
def test_a_name_can_be_no_statement(database: PostgresControlTable, name: str) -> None:
    with closing(connect(database.settings)) as connection:
        text = grants.script(connection, database.settings, Part.READER, name)
    quoted = '"' + name.replace('"', '""') + '"'
    assert "DROP" not in text.replace(quoted, "")
    with pytest.raises(errors.UndefinedObject):
        database.ask(text)
