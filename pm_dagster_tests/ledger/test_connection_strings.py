"""Which database, as whom: URLs of both drivers, parts, libpq's variables; for libpq and for Spark."""

from __future__ import annotations

from urllib.parse import parse_qs

import pytest

from pm_dagster.config.settings import settings_from
from pm_dagster.errors import ConfigurationError
from pm_dagster.ledger.connection_strings import connection_parameters, jdbc_options

_AZURE = "flow.postgres.database.azure.com"


def _of(**variables: str) -> dict[str, str]:
    return connection_parameters(settings_from(variables))


def _url_of(**variables: str) -> str:
    return jdbc_options(settings_from(variables))["url"].partition("?")[0]


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("", {}),
        ("postgresql://u:p%40@h:1/d?sslmode=verify-full", "u p@ h 1 d verify-full"),
        ("host=h port=1 user=u password='p w' dbname=d", "u|p w|h|1|d|"),
        ("jdbc:postgresql://h:1/d?user=u%40x&password=p%2Bq&sslmode=require", "u@x p+q h 1 d require"),
        ("jdbc:postgresql://h/d", {"host": "h", "port": "5432", "dbname": "d"}),
        ("jdbc:postgresql://h", {"host": "h", "port": "5432"}),
        ("jdbc:postgresql:d", {"host": "localhost", "port": "5432", "dbname": "d"}),
        ("jdbc:postgresql:///d", {"host": "localhost", "port": "5432", "dbname": "d"}),
        ("jdbc:postgresql://[::1]:1,h/d%2Fe", {"host": "::1,h", "port": "1,5432", "dbname": "d/e"}),
        ("jdbc:postgresql://h/d?ssl=true", {"host": "h", "port": "5432", "dbname": "d", "sslmode": "verify-full"}),
        ("jdbc:postgresql://h/d?ssl=false", {"host": "h", "port": "5432", "dbname": "d"}),
        (
            "jdbc:postgresql://h/d?ssl=true&sslmode=prefer",
            {"host": "h", "port": "5432", "dbname": "d", "sslmode": "prefer"},
        ),
        (
            "jdbc:postgresql://h/d?ssl&sslfactory=org.postgresql.ssl.NonValidatingFactory&prepareThreshold=0",
            {"host": "h", "port": "5432", "dbname": "d", "sslmode": "require"},
        ),
        (
            "jdbc:postgresql://h/d?sslrootcert=/ca.pem&sslmode=verify-ca",
            {"host": "h", "port": "5432", "dbname": "d", "sslmode": "verify-ca", "sslrootcert": "/ca.pem"},
        ),
    ],
)
def test_urls(url: str, found: dict[str, str] | str) -> None:
    if isinstance(found, str):
        words = found.split("|") if "|" in found else found.split()
        named = zip(("user", "password", "host", "port", "dbname", "sslmode"), words, strict=True)
        found = {name: word for name, word in named if word}
    assert _of(PM_POSTGRES_URL=url) == found


@pytest.mark.parametrize(
    "url",
    [
        "hunter2",
        "postgresql://u:hunter2@h/d?nonsense=1",
        "postgresql://u:hunter2@[h/d",
        "jdbc:sqlserver://h;password=hunter2",
        "jdbc:postgresql://u:hunter2@h/d",
        "jdbc:postgresql://h:hunter2/d",
        "jdbc:postgresql://h/d/hunter2",
        "mysql://u:hunter2@h/d",
    ],
)
def test_unusable_urls_are_named_and_not_shown(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^PM_POSTGRES_URL is neither") as caught:
        _of(PM_POSTGRES_URL=url)
    assert "hunter2" not in str(caught.value)


def test_parts_come_before_the_url_and_the_url_before_libpqs_variables() -> None:
    found = _of(
        PM_POSTGRES_URL="postgresql://url/url",
        PM_POSTGRES_HOST="part",
        PGHOST="libpq",
        PGDATABASE="libpq",
        PGUSER="libpq",
    )
    assert found == {"host": "part", "dbname": "url", "user": "libpq"}


@pytest.mark.parametrize(
    ("variables", "mode"),
    [
        ({"PM_POSTGRES_HOST": _AZURE}, "require"),
        ({"PM_POSTGRES_HOST": f"{_AZURE.upper()}."}, "require"),
        ({"PM_POSTGRES_URL": f"postgresql://{_AZURE}/d"}, "require"),
        ({"PM_POSTGRES_URL": f"jdbc:postgresql://{_AZURE}/d"}, "require"),
        ({"PGHOST": f"h,{_AZURE}"}, "require"),
        ({"PM_POSTGRES_HOST": "flow.postgres.database.chinacloudapi.cn"}, "require"),
        ({"PM_POSTGRES_HOST": _AZURE, "PM_POSTGRES_SSLMODE": "verify-full"}, "verify-full"),
        ({"PM_POSTGRES_HOST": _AZURE, "PGSSLMODE": "verify-ca"}, "verify-ca"),
        ({"PM_POSTGRES_URL": f"service=s host={_AZURE}"}, None),
        ({"PM_POSTGRES_HOST": "postgres.database.azure.com.example.com"}, None),
    ],
)
def test_tls_is_required_on_azure_unless_something_else_is_said(variables: dict[str, str], mode: str | None) -> None:
    assert _of(**variables).get("sslmode") == mode


def test_spark_gets_credentials_beside_the_url() -> None:
    options = jdbc_options(settings_from({"PM_POSTGRES_URL": f"postgresql://u:hunter2@{_AZURE}/d"}))
    assert (options["user"], options["password"], options["driver"]) == ("u", "hunter2", "org.postgresql.Driver")
    assert options["url"].startswith(f"jdbc:postgresql://{_AZURE}:5432/d?")
    assert "sslmode=require" in options["url"]
    assert "hunter2" not in options["url"]


@pytest.mark.parametrize(
    ("variables", "url"),
    [
        ({"PGHOST": "h", "PGDATABASE": "a b/ä"}, "jdbc:postgresql://h:5432/a%20b%2F%C3%A4"),
        ({"PM_POSTGRES_HOST": "::1", "PM_POSTGRES_PORT": "7"}, "jdbc:postgresql://[::1]:7/"),
        ({"PM_POSTGRES_URL": "host=a,b port=1,2"}, "jdbc:postgresql://a:1,b:2/"),
        ({"PM_POSTGRES_URL": "host=a,b port=1"}, "jdbc:postgresql://a:1,b:1/"),
        ({"PM_POSTGRES_URL": "hostaddr=127.0.0.1"}, "jdbc:postgresql://127.0.0.1:5432/"),
    ],
)
def test_sparks_url(variables: dict[str, str], url: str) -> None:
    assert _url_of(**variables) == url


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({}, "no host of the database is set: .*--read driver"),
        ({"PM_POSTGRES_HOST": "/var/run/postgresql"}, "Unix socket: .*--read driver"),
        ({"PM_POSTGRES_URL": "postgresql://u@/d?host=%2Frun"}, "Unix socket: .*--read driver"),
        ({"PM_POSTGRES_URL": "host=a,b,c port=1,2"}, "3 hosts but 2 ports"),
    ],
)
def test_what_spark_cannot_reach(variables: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        _url_of(**variables)


@pytest.mark.parametrize(
    "url",
    ["postgresql://user:geh@eim@127.0.0.1:1/db", "postgresql://user:geheim/ss@127.0.0.1:1/db", "host=h port=geheim"],
)
def test_a_password_that_was_not_escaped_is_not_shown_as_host_or_port(url: str) -> None:
    with pytest.raises(ConfigurationError, match="write @ : / and % of a password as") as caught:
        _of(PM_POSTGRES_URL=url)
    assert "geh" not in str(caught.value)


@pytest.mark.parametrize("port", ["abc", "99999", "5432,x"])
def test_a_port_that_is_none_is_named(port: str) -> None:
    with pytest.raises(ConfigurationError, match=f"PM_POSTGRES_PORT='{port}'"):
        _of(PM_POSTGRES_HOST="h", PM_POSTGRES_PORT=port)


def test_another_host_than_the_urls_leaves_nothing_of_its_place() -> None:
    found = _of(PM_POSTGRES_URL="postgresql://a:1,b:2/d?hostaddr=127.0.0.1,127.0.0.2", PM_POSTGRES_HOST="h")
    assert found == {"host": "h", "dbname": "d"}


@pytest.mark.parametrize(
    ("properties", "found"),
    [
        ("targetServerType=any", {}),
        ("targetServerType=primary", {"target_session_attrs": "read-write"}),
        ("targetServerType=master", {"target_session_attrs": "read-write"}),
        ("targetServerType=preferPrimary", {"target_session_attrs": "read-write"}),
        ("targetServerType=secondary", {"target_session_attrs": "read-only"}),
        ("targetServerType=slave", {"target_session_attrs": "read-only"}),
        ("targetServerType=preferSecondary", {"target_session_attrs": "prefer-standby"}),
        ("targetServerType=preferSlave", {"target_session_attrs": "prefer-standby"}),
        ("loadBalanceHosts=true", {"load_balance_hosts": "random"}),
        ("loadBalanceHosts", {"load_balance_hosts": "random"}),
        ("loadBalanceHosts=false", {}),
        ("currentSchema=flow,public", {"options": "-c search_path=flow,public"}),
        ("currentSchema=my%20own&options=-c%20work_mem=8MB", {"options": "-c work_mem=8MB -c search_path=my\\ own"}),
        ("readOnly=true", {"options": "-c default_transaction_read_only=on"}),
        ("readOnly=false", {}),
        ("gssEncMode=disable&channelBinding=require", {"gssencmode": "disable", "channel_binding": "require"}),
        ("sslcert=c&sslkey=k&sslpassword=p", {"sslcert": "c", "sslkey": "k", "sslpassword": "p"}),
        (
            "ssl=true&sslfactory=org.postgresql.ssl.DefaultJavaSSLFactory",
            {"sslmode": "verify-full", "sslrootcert": "system"},
        ),
        ("connectTimeout=1&socketTimeout=2&tcpKeepAlive=true&ApplicationName=x&prepareThreshold=0", {}),
    ],
)
def test_what_a_jdbc_url_asks_for_is_asked_of_libpq(properties: str, found: dict[str, str]) -> None:
    place = {"host": "a,b", "port": "5432,5432", "dbname": "d"}
    assert _of(PM_POSTGRES_URL=f"jdbc:postgresql://a,b/d?{properties}") == place | found


def test_a_service_of_a_jdbc_url_keeps_its_own_address() -> None:
    assert _of(PM_POSTGRES_URL="jdbc:postgresql:///?service=s") == {"service": "s"}


@pytest.mark.parametrize(
    ("properties", "words"),
    [("targetServerType=best", "targetServerType is none of any, primary"), ("socketFactory=x.Y", "socketFactory")],
)
def test_what_libpq_cannot_do_of_a_jdbc_url_is_named(properties: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        _of(PM_POSTGRES_URL=f"jdbc:postgresql://h/d?{properties}")


@pytest.mark.parametrize(
    ("attrs", "target"),
    [
        ("any", []),
        ("read-write", ["primary"]),
        ("primary", ["primary"]),
        ("read-only", ["secondary"]),
        ("standby", ["secondary"]),
        ("prefer-standby", ["preferSecondary"]),
    ],
)
@pytest.mark.parametrize("by", ["url", "variable"])
def test_spark_looks_for_the_same_server(attrs: str, target: list[str], by: str) -> None:
    more = {"PGTARGETSESSIONATTRS": attrs} if by == "variable" else {}
    url = "host=a,b" if by == "variable" else f"host=a,b target_session_attrs={attrs}"
    asked = parse_qs(jdbc_options(settings_from({"PM_POSTGRES_URL": url, **more}))["url"].partition("?")[2])
    assert asked.get("targetServerType", []) == target


def test_spark_gets_what_libpq_was_told() -> None:
    told = "host=h sslcert=c sslkey=k sslpassword=geheim sslmode=verify-full sslrootcert=system channel_binding=require"
    options = jdbc_options(settings_from({"PM_POSTGRES_URL": f"{told} load_balance_hosts=random gssencmode=disable"}))
    asked = {name: values[0] for name, values in parse_qs(options["url"].partition("?")[2]).items()}
    assert asked == {
        "ApplicationName": "process_manager",
        "connectTimeout": "10",
        "tcpKeepAlive": "true",
        "sslcert": "c",
        "sslkey": "k",
        "sslmode": "verify-full",
        "sslfactory": "org.postgresql.ssl.DefaultJavaSSLFactory",
        "channelBinding": "require",
        "loadBalanceHosts": "true",
        "gssEncMode": "disable",
    }
    assert options["sslpassword"] == "geheim"
    assert "geheim" not in options["url"]


@pytest.mark.parametrize("target", ["any", "primary", "secondary", "preferSecondary"])
def test_a_jdbc_url_comes_back_as_it_was(target: str) -> None:
    url = jdbc_options(settings_from({"PM_POSTGRES_URL": f"jdbc:postgresql://a,b/d?targetServerType={target}"}))["url"]
    assert parse_qs(url.partition("?")[2]).get("targetServerType", ["any"]) == [target]
