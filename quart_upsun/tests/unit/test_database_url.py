"""DATABASE_URL: accepted forms, rejected values and their messages."""

import re
from pathlib import Path
from ssl import SSLContext
from typing import Any

import certifi
import pytest

from quart_upsun.database.url import connect_arguments, host_and_port, parse_database_url

CERTIFICATES = certifi.where()
BASE = "postgresql://us%40er:hunter2@db.example/main"


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("url", "hosts", "ports"),
    [
        ("postgresql://db.example/main", "db.example", None),
        ("postgresql://u:p@[::1]:5433/main", "::1", 5433),
        ("postgresql:///main?host=db.example&port=5433", "db.example", 5433),
        ("postgresql:///main?host=/run/pg", ["/run/pg"], None),
        ("postgresql://%2Frun%2Fpg:5433/main", ["/run/pg"], [5433]),
        ("postgresql://u:p@a,b:5433/main", ["a", "b"], [5432, 5433]),
        ("postgresql://u:p,x@[::1]:5433,[::2]/main", ["::1", "::2"], [5433, 5432]),
        ("postgresql:///main?host=a,b&port=1,2", ["a", "b"], [1, 2]),
        ("postgresql:///main?host=a,b&port=1", ["a", "b"], [1, 1]),
        ("postgresql:///main?host=a:1&host=b:2", ["a", "b"], [1, 2]),
        ("postgresql:///main", None, None),
    ],
)
def test_accepts_every_form_of_hosts(url: str, hosts: Any, ports: Any) -> None:
    parsed = parse_database_url(url)
    arguments = connect_arguments(parsed)
    assert (arguments["host"], arguments["port"]) == (hosts, ports)
    # Parsing is idempotent: subprocesses get the result in their environment.
    assert parse_database_url(parsed) == parsed
    assert parse_database_url(parsed.render_as_string(hide_password=False)) == parsed


def test_host_and_port_for_display() -> None:
    expected = {
        "postgresql:///main": "localhost:5432",
        "postgresql://db.example:5433/main": "db.example:5433",
        "postgresql://a,b:5433/main": "a:5432, b:5433",
        "postgresql:///main?host=/run/pg": "/run/pg:5432",
    }
    assert {url: host_and_port(parse_database_url(url)) for url in expected} == expected


def test_parameters_are_passed_to_asyncpg(tmp_path: Path) -> None:
    passwords = tmp_path / "passwords"
    passwords.touch()
    parsed = parse_database_url(
        f"{BASE}?application_name=a%20name&options=-csearch_path%3Done&connect_timeout=7"
        f"&target_session_attrs=read-write&passfile={passwords}&sslmode=require"
    )
    assert connect_arguments(parsed) == {
        "user": "us@er",
        "password": "hunter2",
        "database": "main",
        "host": "db.example",
        "port": None,
        "ssl": "require",
        "server_settings": {"application_name": "a name", "options": "-csearch_path=one"},
        "timeout": 7.0,
        "target_session_attrs": "read-write",
        "passfile": str(passwords),
    }


def test_accepts_user_password_and_database_as_parameters() -> None:
    parsed = parse_database_url("postgresql://h?user=ada&password=hunter2&dbname=main")
    assert (parsed.username, parsed.password, parsed.database) == ("ada", "hunter2", "main")
    assert "hunter2" not in str(parsed)


@pytest.mark.parametrize(
    "parameters",
    [
        "channel_binding=prefer",
        "channel_binding=disable",
        "gssencmode=disable",
        "client_encoding=UTF8",
        "load_balance_hosts=disable",
        "sslcompression=0",
    ],
)
def test_accepts_parameters_with_default_behavior(parameters: str) -> None:
    plain = connect_arguments(parse_database_url(BASE))
    assert connect_arguments(parse_database_url(f"{BASE}?{parameters}")) == plain


@pytest.mark.parametrize(
    ("parameters", "kind", "checks_host"),
    [
        ("sslmode=disable", "disable", None),
        ("ssl=true", "require", None),
        ("ssl=require", "require", None),
        (f"sslmode=verify-full&sslrootcert={CERTIFICATES}", SSLContext, True),
        (f"sslmode=verify-ca&sslrootcert={CERTIFICATES}", SSLContext, False),
        (f"sslmode=require&sslrootcert={CERTIFICATES}", SSLContext, False),
        ("sslrootcert=system", SSLContext, True),
        ("sslmode=require&sslnegotiation=direct", SSLContext, False),
    ],
)
def test_tls_parameters_configure_the_ssl_context(
    parameters: str, kind: Any, checks_host: bool | None
) -> None:
    found = connect_arguments(parse_database_url(f"{BASE}?{parameters}"))["ssl"]
    if checks_host is None:
        assert found == kind
    else:
        assert isinstance(found, kind)
        assert found.check_hostname is checks_host


def test_uses_the_default_file_of_certificate_authorities(home: Path) -> None:
    with pytest.raises(ValueError, match="sslrootcert"):
        parse_database_url(f"{BASE}?sslmode=verify-full")
    (home / ".postgresql").mkdir()
    (home / ".postgresql" / "root.crt").write_text(Path(CERTIFICATES).read_text())
    found = connect_arguments(parse_database_url(f"{BASE}?sslmode=verify-full"))["ssl"]
    assert isinstance(found, SSLContext)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ("sslmode=require&channel_binding=require", "channel_binding. Only disable or prefer"),
        ("channel_binding=require", "use sslmode=verify-full&sslrootcert=system"),
        ("keepalives_idle=30", "the unsupported parameter keepalives_idle. Remove it"),
        ("service=main", "the unsupported parameter service."),
        ("sslpassword=hunter2", "the unsupported parameter sslpassword."),
        ("gssencmode=require", "gssencmode. Only disable or prefer"),
        (
            "prepared_statement_cache_size=0",
            "the unsupported parameter prepared_statement_cache_size",
        ),
        ("statement_cache_size=0", "a connection pooler is detected"),
        ("pgbouncer=true", "the unsupported parameter pgbouncer"),
        ("schema=public", "Use options=-csearch_path"),
        ("client_encoding=latin1", "client_encoding. Only utf8"),
        ("sslmode=hunter2", "an invalid sslmode. Use one of disable, allow"),
        (
            "target_session_attrs=hunter2",
            "an invalid target_session_attrs. Use one of any, primary",
        ),
        ("ssl_min_protocol_version=hunter2", "an invalid ssl_min_protocol_version. Use one of"),
        ("connect_timeout=0", "an invalid connect_timeout. Use a number of seconds from 1"),
        ("connect_timeout=soon", "an invalid connect_timeout. Use a number of seconds from 1"),
        ("connect_timeout=\u0663", "an invalid connect_timeout. Use a number of seconds from 1"),
        ("passfile=/nowhere", "a passfile that does not exist"),
        ("sslmode=verify-full&sslrootcert=/nowhere", "sslrootcert that cannot be read"),
        (
            "sslmode=verify-full&sslrootcert=/etc/passwd",
            "sslrootcert that is not a valid PEM",
        ),
        ("sslmode=require&sslcert=/nowhere", "sslcert that cannot be read"),
        ("sslmode=require&sslcrl=/nowhere", "sslcrl that cannot be read"),
        ("sslmode=require&sslkey=/nowhere", "has sslkey, which requires sslcert"),
        ("sslrootcert=/etc/passwd", "has sslrootcert, which requires sslmode=require or stricter"),
        ("sslmode=require&sslrootcert=system", "which requires sslmode=verify-full"),
        ("sslmode=require&sslmode=require", "the parameter sslmode more than once"),
        ("sslmode=require&ssl=true", "the parameter sslmode more than once"),
        ("sslmode", "a parameter without a value"),
        ("sslmode=", "the parameter sslmode without a value"),
        ("host=other", "the parameter host more than once"),
        ("password=other", "the parameter password more than once"),
        ("x&hunter2=hunter2", "a parameter without a value"),
        ("hunter2=hunter2", "has the unsupported parameter (hidden)."),
        ("application_name=a%00b", "a control character"),
    ],
)
def test_rejects_unsupported_parameters(parameters: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        parse_database_url(f"{BASE}?{parameters}")
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("postgresql://u:hunter2@h:99999/d", "an invalid port"),
        ("postgresql://u:hunter2@h:0/d", "an invalid port"),
        ("postgresql://u:hunter2@a,b:hunter2/d", "an invalid port"),
        ("postgresql:///d?host=a,b,c&port=1,2", "one for each host"),
        ("postgresql://u:hunter2@a..b/d", "an invalid host name"),
        ("postgresql://u:hunter2@a b/d", "an invalid host name"),
        ("postgresql://u:hunter2@a,/d", "an invalid host name"),
        ("postgresql://u:hunter2@'a'/d", "an invalid host name"),
        ("postgresql://u:hunter2@h/d\nhunter2", "a control character"),
        ("postgresql://u:hunter2\udcff@h/d", "not valid UTF-8"),
        ("postgresql://u:hunter2@h/", "no database name"),
        ("postgresql://::1/hunter2", "is malformed"),
        ("hunter2", "is malformed"),
    ],
)
def test_rejects_a_malformed_url(url: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        parse_database_url(url)
    assert "hunter2" not in str(raised.value)
