"""The database's address: what is supported, what is refused, and in which words."""

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
def test_hosts_in_every_form(url: str, hosts: Any, ports: Any) -> None:
    parsed = parse_database_url(url)
    arguments = connect_arguments(parsed)
    assert (arguments["host"], arguments["port"]) == (hosts, ports)
    # A setting is read more than once: as a URL, and by a program that it is handed on to.
    assert parse_database_url(parsed) == parsed
    assert parse_database_url(parsed.render_as_string(hide_password=False)) == parsed


def test_the_place_is_named_for_people() -> None:
    places = {
        "postgresql:///main": "localhost:5432",
        "postgresql://db.example:5433/main": "db.example:5433",
        "postgresql://a,b:5433/main": "a:5432, b:5433",
        "postgresql:///main?host=/run/pg": "/run/pg:5432",
    }
    assert {url: host_and_port(parse_database_url(url)) for url in places} == places


def test_every_parameter_reaches_asyncpg(tmp_path: Path) -> None:
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


def test_user_password_and_database_may_be_parameters() -> None:
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
def test_what_is_so_anyway_is_accepted(parameters: str) -> None:
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
def test_tls(parameters: str, kind: Any, checks_host: bool | None) -> None:
    found = connect_arguments(parse_database_url(f"{BASE}?{parameters}"))["ssl"]
    if checks_host is None:
        assert found == kind
    else:
        assert isinstance(found, kind)
        assert found.check_hostname is checks_host


def test_the_default_file_of_certificate_authorities(home: Path) -> None:
    with pytest.raises(ValueError, match="sslrootcert"):
        parse_database_url(f"{BASE}?sslmode=verify-full")
    (home / ".postgresql").mkdir()
    (home / ".postgresql" / "root.crt").write_text(Path(CERTIFICATES).read_text())
    found = connect_arguments(parse_database_url(f"{BASE}?sslmode=verify-full"))["ssl"]
    assert isinstance(found, SSLContext)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ("sslmode=require&channel_binding=require", "channel_binding other than disable or prefer"),
        ("channel_binding=require", "sslmode=verify-full&sslrootcert=system instead"),
        ("keepalives_idle=30", "the parameter keepalives_idle, which is not supported"),
        ("service=main", "the parameter service, which is not supported"),
        ("sslpassword=hunter2", "the parameter sslpassword, which is not supported"),
        ("gssencmode=require", "a gssencmode other than disable or prefer"),
        ("prepared_statement_cache_size=0", "the parameter prepared_statement_cache_size"),
        ("statement_cache_size=0", "a pooler in session mode"),
        ("pgbouncer=true", "the parameter pgbouncer"),
        ("schema=public", "use options=-csearch_path"),
        ("client_encoding=latin1", "a client_encoding other than utf8"),
        ("sslmode=hunter2", "a sslmode that is not one of disable, allow"),
        ("target_session_attrs=hunter2", "a target_session_attrs that is not one of any, primary"),
        ("ssl_min_protocol_version=hunter2", "a ssl_min_protocol_version that is not one of"),
        ("connect_timeout=0", "a connect_timeout that is not a number of seconds from 1"),
        ("connect_timeout=soon", "a connect_timeout that is not a number of seconds from 1"),
        ("connect_timeout=\u0663", "a connect_timeout that is not a number of seconds from 1"),
        ("passfile=/nowhere", "a passfile that does not exist"),
        ("sslmode=verify-full&sslrootcert=/nowhere", "sslrootcert whose file cannot be read"),
        (
            "sslmode=verify-full&sslrootcert=/etc/passwd",
            "sslrootcert whose file is not a valid PEM",
        ),
        ("sslmode=require&sslcert=/nowhere", "sslcert whose file cannot be read"),
        ("sslmode=require&sslcrl=/nowhere", "sslcrl whose file cannot be read"),
        ("sslmode=require&sslkey=/nowhere", "has sslkey, which needs sslcert"),
        ("sslrootcert=/etc/passwd", "has sslrootcert, which needs sslmode=require or stronger"),
        ("sslmode=require&sslrootcert=system", "which needs sslmode=verify-full"),
        ("sslmode=require&sslmode=require", "the parameter sslmode more than once"),
        ("sslmode=require&ssl=true", "the parameter sslmode more than once"),
        ("sslmode", "a parameter without a value"),
        ("sslmode=", "the parameter sslmode without a value"),
        ("host=other", "the parameter host more than once"),
        ("password=other", "the parameter password more than once"),
        ("x&hunter2=hunter2", "a parameter without a value"),
        ("hunter2=hunter2", "has a parameter, which is not supported"),
        ("application_name=a%00b", "a control character"),
    ],
)
def test_what_is_not_supported_is_named(parameters: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        parse_database_url(f"{BASE}?{parameters}")
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("postgresql://u:hunter2@h:99999/d", "a port that is not a number from 1 to 65535"),
        ("postgresql://u:hunter2@h:0/d", "a port that is not a number from 1 to 65535"),
        ("postgresql://u:hunter2@a,b:hunter2/d", "a port that is not a number from 1 to 65535"),
        ("postgresql:///d?host=a,b,c&port=1,2", "one port for each host"),
        ("postgresql://u:hunter2@a..b/d", "a host that is not a valid host name"),
        ("postgresql://u:hunter2@a b/d", "a host that is not a valid host name"),
        ("postgresql://u:hunter2@a,/d", "a host that is not a valid host name"),
        ("postgresql://u:hunter2@'a'/d", "a host that is not a valid host name"),
        ("postgresql://u:hunter2@h/d\nhunter2", "a control character"),
        ("postgresql://u:hunter2\udcff@h/d", "not valid UTF-8"),
        ("postgresql://u:hunter2@h/", "names no database"),
        ("postgresql://::1/hunter2", "is not of the form"),
        ("hunter2", "is not of the form"),
    ],
)
def test_a_malformed_address_is_explained(url: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        parse_database_url(url)
    assert "hunter2" not in str(raised.value)
