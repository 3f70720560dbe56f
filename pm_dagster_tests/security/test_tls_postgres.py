"""The database's TLS: what must be refused is, before a password is sent, and the message names TLS and what to do."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
import trustme

from pm_dagster.config.settings import Settings, settings_from
from pm_dagster.errors import ConfigurationError, ProcessManagerError
from pm_dagster.ledger import server
from pm_dagster.ledger.connection import connect
from pm_dagster.ledger.connection_strings import connection_parameters
from pm_dagster_tests.ledger.postgres_control_table import PostgresControlTable
from pm_dagster_tests.security.tls_site import NAME, WRONG, contexts


@contextmanager
def _front(context: ssl.SSLContext | None) -> Iterator[tuple[int, list[bytes]]]:
    """A server's beginning; without a context one that speaks no TLS. Gives its port, and what was said to it."""
    heard: list[bytes] = []

    def serve(listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                plain, _ = listener.accept()
                with plain, suppress(OSError):
                    plain.recv(64)
                    plain.sendall(b"S" if context else b"N")
                    heard.append(_rest(plain, context))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        yield listener.getsockname()[1], heard
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def _rest(plain: socket.socket, context: ssl.SSLContext | None) -> bytes:
    if context is None:
        return plain.recv(1024)
    with context.wrap_socket(plain, server_side=True) as session:
        return session.recv(1024)


def _settings(port: int, sslmode: str) -> Settings:
    where = {"PM_POSTGRES_HOST": NAME, "PM_POSTGRES_PORT": str(port), "PM_POSTGRES_SSLMODE": sslmode}
    return settings_from({**where, "PM_POSTGRES_USER": "u", "PM_POSTGRES_PASSWORD": "a-password"})


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    monkeypatch.setenv("PGSSLROOTCERT", str(tmp_path / "authority.pem"))
    with _front(contexts(wrong, authority)) as (port, heard), pytest.raises(ConfigurationError, match="TLS") as caught:
        connect(_settings(port, "verify-full"))
    assert not any(heard)
    assert "sslmode" in str(caught.value)
    assert NAME in str(caught.value)


@pytest.mark.parametrize("mode", ["require", "verify-full"])
def test_a_server_without_tls(mode: str) -> None:
    with _front(None) as (port, heard), pytest.raises(ProcessManagerError, match="TLS"):
        connect(_settings(port, mode))
    assert not any(heard)


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ({"PM_POSTGRES_HOST": "db.example.com"}, "require"),
        ({"PM_POSTGRES_URL": "postgresql://a,127.0.0.1/x"}, "require"),
        ({"PM_POSTGRES_HOST": "127.0.0.1.example.com"}, "require"),
        ({"PM_POSTGRES_HOST": "db.example.com", "PM_POSTGRES_SSLMODE": "verify-full"}, "verify-full"),
        ({"PM_POSTGRES_HOST": "localhost"}, None),
        ({"PM_POSTGRES_HOST": "/var/run"}, None),
    ],
)
def test_a_token_of_entra_id_goes_over_in_tls_only(
    monkeypatch: pytest.MonkeyPatch, where: dict[str, str], expected: str | None
) -> None:
    monkeypatch.setattr("pm_dagster.config.entra.token", lambda _: "a-token")
    assert connection_parameters(settings_from({**where, "PM_POSTGRES_AUTH": "entra"})).get("sslmode") == expected
    assert connection_parameters(settings_from(where)).get("sslmode") == where.get("PM_POSTGRES_SSLMODE")


def test_doctor_says_how_the_connection_is_protected(database: PostgresControlTable) -> None:
    with closing(connect(database.settings)) as connection:
        assert server.server(connection).endswith("on this machine")
