"""The embedded server: it starts, stops, recovers, keeps to itself and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from contextlib import closing
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest

from pm_dagster.sandbox.postgres import EmbeddedPostgres, EmbeddedPostgresError
from pm_dagster_tests.database import fetched

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def ask(url: str, statement: str) -> list[tuple[Any, ...]]:
    with closing(psycopg2.connect(url)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement)
            return fetched(cursor)


def process_of(server: EmbeddedPostgres) -> int:
    return int((server.data_dir / "postmaster.pid").read_text().splitlines()[0])


def is_alive(process: int) -> bool:
    # By its state and not by signal 0: where process 1 reaps nothing, a dead server stays listed as a zombie.
    command = ["ps", "-o", "stat=", "-p", str(process)]
    state = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return state != "" and not state.startswith("Z")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres(tmp_path / "pg", durable=False) as started:
        yield started


def test_starts_answers_and_leaves_no_process(tmp_path: Path) -> None:
    with EmbeddedPostgres(tmp_path / "pg", durable=False) as server:
        assert ask(server.url, "SELECT 1") == [(1,)]
        process = process_of(server)
        assert is_alive(process)
    assert not server.is_running()
    assert not is_alive(process)


def test_leaves_no_process_when_the_block_fails(tmp_path: Path) -> None:
    process = 0

    def work() -> None:
        nonlocal process
        with EmbeddedPostgres(tmp_path / "pg", durable=False) as server:
            process = process_of(server)
            raise KeyError

    with pytest.raises(KeyError):
        work()
    assert not is_alive(process)


def test_keeps_its_rows_over_a_restart(server: EmbeddedPostgres) -> None:
    ask(server.url, "CREATE TABLE t AS SELECT 7 AS n")
    server.restart()
    assert ask(server.url, "SELECT n FROM t") == [(7,)]


def test_recovers_from_an_immediate_stop(server: EmbeddedPostgres) -> None:
    ask(server.url, "CREATE TABLE t AS SELECT 7 AS n")
    server.stop("immediate")
    server.start()
    assert ask(server.url, "SELECT n FROM t") == [(7,)]
    assert "automatic recovery in progress" in (server.data_dir / "server.log").read_text()


def test_starts_again_after_it_was_killed(server: EmbeddedPostgres) -> None:
    ask(server.url, "CREATE TABLE t AS SELECT 7 AS n")
    with closing(psycopg2.connect(server.url)):
        process = process_of(server)
        os.kill(process, signal.SIGKILL)
        while is_alive(process):
            time.sleep(0.01)
    server.start()
    assert ask(server.url, "SELECT n FROM t") == [(7,)]


def test_start_and_stop_may_be_repeated(server: EmbeddedPostgres) -> None:
    before = ask(server.url, "SELECT pg_postmaster_start_time()")
    server.start()
    EmbeddedPostgres(server.data_dir, durable=False).start()
    assert ask(server.url, "SELECT pg_postmaster_start_time()") == before
    server.stop()
    server.stop()
    assert not server.is_running()


def test_two_servers_at_once_know_nothing_of_each_other(tmp_path: Path) -> None:
    with (
        EmbeddedPostgres(tmp_path / "a", 0, durable=False) as a,
        EmbeddedPostgres(tmp_path / "b", 0, durable=False) as b,
    ):
        a.create_database("only_in_a")
        assert a.tcp_url != b.tcp_url
        assert ask(b.tcp_url, "SELECT count(*) FROM pg_database WHERE datname = 'only_in_a'") == [(0,)]


def test_tcp_is_off_unless_asked_for(server: EmbeddedPostgres) -> None:
    assert ask(server.url, "SHOW listen_addresses") == [("",)]
    with pytest.raises(EmbeddedPostgresError, match="no TCP port"):
        _ = server.tcp_url


def test_tcp_is_loopback_with_a_password(tmp_path: Path) -> None:
    with EmbeddedPostgres(tmp_path / "pg", 0, durable=False) as server:
        url = server.tcp_url
        assert ask(url, "SHOW listen_addresses") == [("127.0.0.1",)]
        scheme, rest = url.split("://")
        with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
            psycopg2.connect(f"{scheme}://postgres:wrong@{rest.split('@')[1]}")
        server.restart()
        assert server.tcp_url == url
        assert ask(url, "SELECT 1") == [(1,)]


def test_a_running_server_of_another_port_is_refused(server: EmbeddedPostgres) -> None:
    with pytest.raises(EmbeddedPostgresError, match="Stop it first"), EmbeddedPostgres(server.data_dir, 0):
        pytest.fail("it took over a server that it cannot use")
    assert server.is_running()


def test_the_folder_is_private(server: EmbeddedPostgres) -> None:
    assert stat.S_IMODE(server.data_dir.stat().st_mode) == 0o700


def test_a_deep_folder_gets_a_short_socket(tmp_path: Path) -> None:
    with EmbeddedPostgres(tmp_path / ("d" * 60) / ("e" * 60) / "p'g %x", durable=False) as server:
        assert ask(server.url, "SELECT 1") == [(1,)]
        assert server.socket_dir != server.data_dir
        assert stat.S_IMODE(server.socket_dir.stat().st_mode) == 0o700
    assert not server.socket_dir.exists()


def test_crash_safety_is_on_unless_given_up(tmp_path: Path, server: EmbeddedPostgres) -> None:
    assert ask(server.url, "SHOW fsync") == [("off",)]
    with EmbeddedPostgres(tmp_path / "safe") as safe:
        assert ask(safe.url, "SHOW fsync") == [("on",)]


def test_a_database_is_a_copy_of_its_template(server: EmbeddedPostgres) -> None:
    ask(server.create_database("pattern"), "CREATE TABLE t AS SELECT 7 AS n")
    assert ask(server.create_database("copy", template="pattern"), "SELECT n FROM t") == [(7,)]
    with pytest.raises(EmbeddedPostgresError, match="already exists"):
        server.create_database("copy")
    server.drop_database("copy")
    server.drop_database("copy")


def test_a_failed_start_says_why(tmp_path: Path) -> None:
    server = EmbeddedPostgres(tmp_path / "pg", durable=False)
    with server, (server.data_dir / "postgresql.conf").open("a") as conf:
        conf.write("no_such_setting = 1\n")
    with pytest.raises(EmbeddedPostgresError, match="no_such_setting"):
        server.start()


_START = """
import sys
from pm_dagster.sandbox.postgres import EmbeddedPostgres
EmbeddedPostgres(sys.argv[1], durable=False).start()
"""


def _started_by_a_root_that_is_bound(folder: Path) -> str:
    """What is said to a root who may not pass through the closed folders of others, as in a locked-down container."""
    bound = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    done = subprocess.run(
        [*bound, sys.executable, "-c", _START, str(folder)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode != 0
    return done.stderr.partition("EmbeddedPostgresError: ")[2]


@pytest.mark.skipif(os.geteuid() != 0, reason="only as root does the server run as another user")
def test_a_folder_that_the_user_of_the_server_cannot_enter_is_named(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    said = _started_by_a_root_that_is_bound(closed / "pg")
    outermost = next(each for each in reversed((closed / "pg").parents) if not each.stat().st_mode & stat.S_IXOTH)
    assert f"other users may not enter {outermost}. Let them (chmod o+x {outermost})" in said
    assert not (closed / "pg").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    others = tmp_path / "others"
    others.mkdir(mode=0o755)
    os.chown(others, 65534, 65534)
    assert f"cannot write in {others}" in _started_by_a_root_that_is_bound(others / "pg")


def test_the_control_schema_shows_what_waits(database_url: str) -> None:
    ask(
        database_url,
        "INSERT INTO mm_run_plc (cntrt_id, run_sttus_name, wkf_job_id, file_name, rgstr_file_time) "
        "VALUES (1, 'WAITING', 2, 'a.csv', now()), (1, 'SUCCESS', 2, 'b.csv', now())",
    )
    assert ask(database_url, "SELECT * FROM mm_run_wait_vw") == [(1, 1, "a.csv", 2, None)]
