"""A connection that is refused, in any language and encoding: the SQLSTATE decides, the words are shown."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest

from pm_dagster.config.settings import Settings
from pm_dagster.errors import ConfigurationError, ControlPlaneUnavailable, ProcessManagerError
from pm_dagster.ledger.connection import connect
from pm_dagster.sandbox.postgres import EmbeddedPostgres
from pm_dagster_tests.ledger.refusing_server import RefusingServer, error_response, refusing_server

_LANGUAGES: list[tuple[str, bytes, str]] = [
    ("german-utf8", "Datenbank »x« existiert nicht".encode(), "existiert nicht"),
    ("german-latin1", "Passwort-Authentifizierung für »x« fehlgeschlagen".encode("latin-1"), "für »x«"),
    ("french-latin9", "l'authentification par mot de passe a échoué".encode("iso8859-15"), "a échoué"),
    ("japanese-eucjp", 'データベース"x"は存在しません'.encode("euc-jp"), '"x"'),
    ("japanese-sjis", 'ユーザー"x"のパスワード認証に失敗しました'.encode("shift-jis"), '"x"'),
    ("chinese-gbk", '数据库 "x" 不存在'.encode("gbk"), '"x"'),
    ("chinese-gb18030", '角色 "x" 不存在 𠀀'.encode("gb18030"), '"x"'),
    ("korean-euckr", '"x" 데이터베이스 없음'.encode("euc-kr"), '"x"'),
    ("russian-koi8r", 'база данных "x" не существует'.encode("koi8-r"), '"x"'),
    ("russian-cp1251", 'роль "x" не существует'.encode("cp1251"), '"x"'),
    ("english", b'database "x" does not exist', "does not exist"),
    ("nothing", b"", "FATAL"),
    (
        "another-kind's-english",
        b'password authentication failed; database "x" does not exist; certificate',
        "certificate",
    ),
]
_CODES: list[tuple[str, type[ProcessManagerError], str]] = [
    ("28P01", ConfigurationError, "does not accept our credentials"),
    ("28000", ConfigurationError, "does not accept our credentials"),
    ("3D000", ConfigurationError, "refuses the connection"),
    ("42501", ConfigurationError, "lacks a privilege"),
    ("42704", ConfigurationError, "refuses the connection"),
    ("57P03", ControlPlaneUnavailable, "does not answer"),
    ("57P01", ControlPlaneUnavailable, "does not answer"),
    ("53300", ControlPlaneUnavailable, "does not answer"),
    ("55000", ControlPlaneUnavailable, "does not answer"),
    ("08P01", ControlPlaneUnavailable, "does not answer"),
    ("XX000", ControlPlaneUnavailable, "does not answer"),
    ("ZZ999", ControlPlaneUnavailable, "does not answer"),
]
_SEVERITIES = {"german-latin1": b"FATAL", "french-latin9": b"FATAL", "russian-koi8r": "ВАЖНО".encode("koi8-r")}


@pytest.fixture(scope="module")
def server() -> Iterator[RefusingServer]:
    """One for all of them; each sets its answer."""
    with refusing_server() as running:
        yield running


def _refused(url: str, **settings: str) -> ProcessManagerError:
    with pytest.raises(ProcessManagerError) as caught:
        connect(replace(Settings(postgres_url=url), **settings))  # type: ignore[arg-type]
    text = str(caught.value)
    assert "hunter2" not in text
    assert "LOCATION" not in text
    assert "\n" not in text
    return caught.value


@pytest.mark.parametrize(("code", "kind", "says"), _CODES, ids=[code for code, *_ in _CODES])
@pytest.mark.parametrize(("language", "words", "shown"), _LANGUAGES, ids=[name for name, *_ in _LANGUAGES])
def test_the_code_decides_in_every_language(
    server: RefusingServer, language: str, words: bytes, shown: str, code: str, kind: type, says: str
) -> None:
    if (code, language) == ("08P01", "another-kind's-english"):
        says, kind = "does not accept our credentials", ConfigurationError  # what PgBouncer says, with its one code
    server.answer = error_response(code, words, _SEVERITIES.get(language, b"FATAL"))
    error = _refused(server.url)
    assert (type(error), says in str(error), f"({code})" in str(error)) == (kind, True, True), str(error)
    assert shown in str(error)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (b"no such database: x", "refuses the connection"),
        (b'no such user: "x"', "refuses the connection"),
        (b"unsupported startup parameter: search_path", "refuses the connection"),
        (b"password authentication failed", "does not accept our credentials"),
        (b"SASL authentication failed", "does not accept our credentials"),
    ],
)
def test_pgbouncers_one_code_is_told_by_its_words(server: RefusingServer, words: bytes, says: str) -> None:
    server.answer = error_response("08P01", words, b"ERROR")
    error = _refused(server.url)
    assert (type(error), says in str(error)) == (ConfigurationError, True)


@pytest.mark.parametrize(
    "words", [b"pgbouncer cannot connect to server", b"query_wait_timeout", b"server login failed"]
)
def test_pgbouncer_without_its_server_may_have_it_in_seconds(server: RefusingServer, words: bytes) -> None:
    server.answer = error_response("08P01", words, b"ERROR")
    assert isinstance(_refused(server.url), ControlPlaneUnavailable)


def test_an_answer_in_the_protocol_before_codes_is_retried(server: RefusingServer) -> None:
    server.answer = b"E" + "zu viele Clients für diesen Server\n".encode("latin-1") + b"\0"
    assert isinstance(_refused(server.url), ControlPlaneUnavailable)


def test_what_is_no_answer_of_a_database_is_retried(server: RefusingServer) -> None:
    for answer in (b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-OpenSSH\r\n", b"\xff\xfe\xfd", b""):
        server.answer = answer
        assert isinstance(_refused(server.url), ControlPlaneUnavailable), answer


def test_only_a_refusal_is_asked_for_again(server: RefusingServer) -> None:
    server.answer = error_response("28P01", b"nein")
    del server.seen[:]
    _refused(server.url)
    assert len(server.seen) == 2
    server.answer = b""
    del server.seen[:]
    _refused(f"{server.url}?sslmode=disable&gssencmode=disable")
    assert len(server.seen) == 1


def test_of_several_hosts_one_that_is_away_may_be_the_right_one(server: RefusingServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    server.answer = error_response("28000", "kein pg_hba.conf-Eintrag für »x«".encode("latin-1"))
    error = _refused(f"postgresql://u:hunter2@127.0.0.1:{port},127.0.0.1:{server.port}/d")
    assert isinstance(error, ControlPlaneUnavailable)
    assert "für »x«" in str(error)
    error = _refused(f"postgresql://u:hunter2@127.0.0.1:{server.port},127.0.0.1:{server.port}/d")
    assert isinstance(error, ConfigurationError)


def test_a_name_of_several_addresses_is_one_host(server: RefusingServer) -> None:
    server.answer = error_response("28P01", "échec".encode("latin-1"))
    error = _refused(f"postgresql://u:hunter2@localhost:{server.port}/d")
    assert isinstance(error, ConfigurationError)


def test_a_real_server_without_the_database_or_the_role(postgres: EmbeddedPostgres) -> None:
    assert "(3D000)" in str(_refused(postgres.database_url("Müller")))
    assert "(28000)" in str(_refused(postgres.url, postgres_user="Müller"))
    assert "(42704)" in str(_refused(f"{postgres.url}&options=-c%20no.such.thing%3D1%20-c%20nosuch%3D1"))


def test_a_command_says_it_in_one_line(server: RefusingServer) -> None:
    server.answer = error_response("3D000", "データベースは存在しません".encode("euc-jp"))
    environment = {"PATH": os.environ["PATH"], "PM_POSTGRES_URL": server.url, "LANG": "ja_JP.eucJP", "LANGUAGE": "ja"}
    command = [sys.executable, "-m", "pm_dagster.cli", "status"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "pm: the database refuses the connection (3D000)" in done.stderr
