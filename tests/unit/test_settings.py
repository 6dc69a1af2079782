"""Settings: defaults, validation and error messages."""

import asyncio
import stat
import sys
from pathlib import Path

import pytest

from app import settings as settings_module
from app.settings import Settings, load_settings
from quart_upsun import platform as upsun
from quart_upsun.database.url import parse_database_url
from quart_upsun.settings import SettingsError

URL = "postgresql://user:secret-word@db.example:5432/main"
STRONG = "Wq7vR2mXk9TzB4nY8cJ3hL6pD1fG5sA0uE"


@pytest.fixture(autouse=True)
def laptop(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A development environment with a database URL and its own `.data` directory."""
    monkeypatch.setenv("DATABASE_URL", URL)
    monkeypatch.setattr(Settings, "root", tmp_path)


def on_upsun(monkeypatch: pytest.MonkeyPatch, environment: str = "main-abc") -> None:
    monkeypatch.setenv("PLATFORM_APPLICATION_NAME", "app")
    monkeypatch.setenv("PLATFORM_ENVIRONMENT", environment)


def test_defaults() -> None:
    settings = load_settings()
    assert (settings.host, settings.port) == ("127.0.0.1", 8000)
    assert settings.web_concurrency is None
    assert settings.log_level == "info"
    assert not settings.flask_debug
    assert settings.platform is None


@pytest.mark.parametrize(
    "scheme", ["postgresql", "postgres", "pgsql", "postgresql+asyncpg", " postgresql"]
)
def test_accepts_every_database_url_scheme(scheme: str) -> None:
    url = parse_database_url(f"{scheme}://us%40er:p%25%3A%2F@host:5433/name")
    assert url.drivername == "postgresql+asyncpg"
    assert (url.username, url.password, url.host, url.port, url.database) == (
        "us@er",
        "p%:/",
        "host",
        5433,
        "name",
    )


def test_libpq_options_are_kept() -> None:
    url = parse_database_url("postgresql:///name?host=/run/pg&sslmode=require")
    assert dict(url.query) == {"host": "/run/pg", "sslmode": "require"}


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("DATABASE_URL", None, "DATABASE_URL is not set."),
        ("DATABASE_URL", "nonsense", "DATABASE_URL is malformed"),
        (
            "DATABASE_URL",
            "mysql://u:hunter2@h/d",
            "DATABASE_URL must start with postgresql://, got mysql://",
        ),
        ("DATABASE_URL", "postgresql://u:hunter2@h", "DATABASE_URL has no database name"),
        ("DATABASE_URL", "postgresql://u:hunter2@h:port/d", "DATABASE_URL is malformed"),
        (
            "DATABASE_URL",
            f"{URL}?keepalives=1",
            "DATABASE_URL has the unsupported parameter keepalives",
        ),
        ("SECRET_KEY", "hunter2\udcff", "SECRET_KEY is not valid UTF-8"),
        ("SECRET_KEY_FALLBACKS", "hunter2\udcff", "SECRET_KEY_FALLBACKS is not valid UTF-8"),
        ("HOST", "a host", "HOST is not a host name"),
        ("HOST", "a..b", "HOST is not a host name"),
        ("HOST", "'127.0.0.1'", "HOST is not a host name"),
        ("HOST", "999.1.1.1", "HOST is not a host name"),
        ("HOST", "http://127.0.0.1", "HOST is not a host name"),
        ("MAIL_URL", "hunter2", "MAIL_URL must start with smtp://"),
        ("MAIL_URL", "console:hunter2", "MAIL_URL must start with smtp://"),
        ("MAIL_URL", "smtp://u:hunter2/x@h", "MAIL_URL is malformed"),
        ("MAIL_URL", "smtp://u:p@h:hunter2", "MAIL_URL is malformed"),
        ("MAIL_URL", "smtp://u:p@h:99999", "MAIL_URL is malformed"),
        ("MAIL_URL", "smtp://u:p@h/hunter2", "MAIL_URL is malformed"),
        ("MAIL_URL", "smtp://h?tls=hunter2", "MAIL_URL is malformed"),
        ("MAIL_URL", "smtp://[::1", "MAIL_URL is malformed"),
        ("MAIL_URL", "smtp://u:hunter2@", "MAIL_URL has no host"),
        ("MAIL_URL", "smtp://u:hunter2@a..b", "MAIL_URL has an invalid host"),
        ("WEB_CONCURRENCY", "many", "WEB_CONCURRENCY must be a whole number."),
        ("WEB_CONCURRENCY", "0", "WEB_CONCURRENCY must be at least 1."),
        ("PORT", "70000", "PORT must be at most 65535."),
        ("PORT", "\uff18\uff10", "PORT must be a whole number."),
        ("PORT", "'80'", "PORT must be a whole number."),
        ("LOG_LEVEL", "loud", "LOG_LEVEL must be 'debug', 'info', 'warning' or 'error'."),
        ("FLASK_DEBUG", "perhaps", "FLASK_DEBUG must be 1 or 0."),
        ("SEND_FILE_MAX_AGE_DEFAULT", "-1", "SEND_FILE_MAX_AGE_DEFAULT must be at least 0."),
    ],
)
def test_invalid_value_error_names_the_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str | None, sentence: str
) -> None:
    if value is None:
        monkeypatch.delenv(name)
    else:
        monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError) as raised:
        load_settings()
    message = str(raised.value)
    assert message.startswith(sentence)
    assert "\n" not in message
    assert message.endswith(".")
    assert "hunter2" not in message


def test_an_empty_variable_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEB_CONCURRENCY", "")
    assert load_settings().web_concurrency is None


def test_secrets_are_not_in_the_settings_repr(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_KEY", STRONG)
    text = repr(load_settings()) + str(load_settings())
    assert "secret-word" not in text
    assert STRONG not in text


def test_development_key_is_generated_and_stored(tmp_path: Path) -> None:
    first, second = load_settings(), load_settings()
    assert first.secret_key == second.secret_key
    assert len(first.secret_key.get_secret_value()) >= 32
    assert stat.S_IMODE((tmp_path / ".data" / "secret_key").stat().st_mode) == 0o600


async def test_concurrent_processes_agree_on_the_key(tmp_path: Path) -> None:
    (tmp_path / ".data").mkdir()
    (tmp_path / ".data" / "secret_key").touch()  # as after a crash
    code = (
        "import sys; from pathlib import Path; from app import settings;"
        f"settings.Settings.root = Path({str(tmp_path)!r}); sys.stdin.read();"
        "print(settings.load_settings().secret_key.get_secret_value())"
    )
    pipe = asyncio.subprocess.PIPE
    starting = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", code),
            cwd=settings_module.ROOT,
            env={"DATABASE_URL": URL, "QUART_SKIP_DOTENV": "1"},
            stdin=pipe,
            stdout=pipe,
        )
        for _ in range(6)
    ]
    outputs = await asyncio.gather(*(process.communicate(b"") for process in starting))
    keys = {output.decode().strip() for output, _ in outputs}
    assert keys == {load_settings().secret_key.get_secret_value()}
    assert {path.name for path in (tmp_path / ".data").iterdir()} == {
        *("environment", "environment.lock", "secret_key", "secret_key.lock")
    }


@pytest.mark.parametrize("content", [b"hunter2", b"a" * 64, b"\xff\xfe\x00"])
def test_weak_key_file_is_rejected(tmp_path: Path, content: bytes) -> None:
    """The file is not replaced, because a user may have created it."""
    path = tmp_path / ".data" / "secret_key"
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(
        SettingsError, match=r"^SECRET_KEY is not set, and .* is weak\. Delete the file"
    ):
        load_settings()
    assert path.read_bytes() == content


@pytest.mark.parametrize("content", ["", "\n"])
def test_an_empty_key_file_is_replaced(tmp_path: Path, content: str) -> None:
    path = tmp_path / ".data" / "secret_key"
    path.parent.mkdir()
    path.write_text(content)
    assert len(load_settings().secret_key.get_secret_value()) >= 32


@pytest.mark.parametrize(
    ("value", "sender"),
    [
        ("noreply@example.com", "noreply@example.com"),
        (" root@localhost ", "root@localhost"),
        ("Site <noreply@example.com>", "Site <noreply@example.com>"),
        ("Acme Inc. <noreply@example.com>", '"Acme Inc." <noreply@example.com>'),
        ('"Acme, Inc" <noreply@example.com>', '"Acme, Inc" <noreply@example.com>'),
        ("noreply@b\u00fccher.example", "noreply@xn--bcher-kva.example"),
    ],
)
def test_mail_from_is_normalized(monkeypatch: pytest.MonkeyPatch, value: str, sender: str) -> None:
    monkeypatch.setenv("MAIL_FROM", value)
    assert load_settings().mail_from == sender


@pytest.mark.parametrize(
    "value",
    [
        "nope",
        "a@b, c@d",
        "A <a@example.com>, B <b@example.com>",
        "a@example.com\nBcc: b@example.com",
        "Site <>",
        "a b@example.com",
        "a@exa mple.com",
        "\u00fc@example.com",
        "@example.com",
        "a@",
        "   ",
    ],
)
def test_invalid_mail_from_is_rejected(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("MAIL_FROM", value)
    with pytest.raises(SettingsError, match=r"^MAIL_FROM is not an email address"):
        load_settings()


@pytest.mark.parametrize(
    ("value", "origin"),
    [
        ("https://www.example.com", "https://www.example.com"),
        (" https://www.example.com/ ", "https://www.example.com"),
        ("HTTPS://WWW.example.com:443", "https://www.example.com"),
        ("https://b\u00fccher.example:8443", "https://xn--bcher-kva.example:8443"),
        ("http://[0:0::1]:8000", "http://[::1]:8000"),
    ],
)
def test_public_origin_is_normalized(
    monkeypatch: pytest.MonkeyPatch, value: str, origin: str
) -> None:
    monkeypatch.setenv("PUBLIC_ORIGIN", value)
    assert load_settings().origin == origin


@pytest.mark.parametrize(
    "value",
    [
        "www.example.com",
        "ftp://www.example.com",
        "https://",
        "https://www.example.com/path",
        "https://www.example.com?query",
        "https://www.example.com#fragment",
        "https://user@www.example.com",
        "https://www.example.com:99999",
        "https://www.example.com:0",
        "https://www.example.com:",
        "https://www.example.com:\u0663",
        "https://www.exa\tmple.com",
        "https://www example.com",
        "https://*.example.com",
        "'https://www.example.com'",
        "https://[::1",
        "https://999.1.1.1",
    ],
)
def test_invalid_public_origin_is_rejected(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("PUBLIC_ORIGIN", value)
    with pytest.raises(SettingsError, match=r"^PUBLIC_ORIGIN is not an origin"):
        load_settings()


def test_https_public_origin_makes_cookies_secure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PUBLIC_ORIGIN", "http://www.example.com")
    assert not load_settings().secure
    monkeypatch.setenv("PUBLIC_ORIGIN", "https://www.example.com")
    assert load_settings().secure
    assert load_settings().quart()["SESSION_COOKIE_NAME"] == f"__Host-{Settings.name}-session"


@pytest.mark.parametrize(
    ("value", "host", "origin"),
    [
        ("[::1]", "::1", "http://[::1]:8000"),
        ("::1", "::1", "http://[::1]:8000"),
        (" localhost ", "localhost", "http://localhost:8000"),
        ("fe80::1%eth0", "fe80::1%eth0", "http://[fe80::1%eth0]:8000"),
    ],
)
def test_host_is_normalized(
    monkeypatch: pytest.MonkeyPatch, value: str, host: str, origin: str
) -> None:
    monkeypatch.setenv("HOST", value)
    assert (load_settings().host, load_settings().origin) == (host, origin)


@pytest.mark.parametrize("key", [None, "", "short", "changeme" * 8, "a" * 64])
def test_missing_or_weak_key_is_rejected_on_upsun(
    monkeypatch: pytest.MonkeyPatch, key: str | None
) -> None:
    on_upsun(monkeypatch)
    if key is not None:
        monkeypatch.setenv("SECRET_KEY", key)
    with pytest.raises(SettingsError, match=r"^SECRET_KEY is missing or weak"):
        load_settings()


def test_keys_differ_by_purpose_and_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_KEY", STRONG)
    on_upsun(monkeypatch, "main-abc")
    production = load_settings()
    on_upsun(monkeypatch, "preview-def")
    preview = load_settings()
    assert production.keys("cookies") == production.keys("cookies")
    keys = {settings.keys(purpose)[0] for settings in (production, preview) for purpose in "ab"}
    assert len(keys) == 4
    assert STRONG not in keys


def test_traceback_pages_are_for_development_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASK_DEBUG", "1")
    assert load_settings().traceback_pages
    monkeypatch.setenv("SECRET_KEY", STRONG)
    on_upsun(monkeypatch)
    assert not load_settings().traceback_pages


def test_cors_origins_are_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().allowed_origins == frozenset()
    monkeypatch.setenv("CORS_ORIGINS", "https://app.example.com, http://[::1]:3000,")
    assert load_settings().allowed_origins == {"https://app.example.com", "http://[::1]:3000"}


@pytest.mark.parametrize(
    "origin",
    [
        "*",
        "null",
        "app.example.com",
        "https://*.example.com",
        "https://app.example.com/",
        "https://app.example.com/path",
        "https://App.example.com",
        "https://app.example.com:443",
        "https://app.example.com:x",
        "https://user@app.example.com",
        "https://app.example.com?",
        "https://[::1",
        "ftp://app.example.com",
    ],
)
def test_invalid_cors_origin_is_rejected(monkeypatch: pytest.MonkeyPatch, origin: str) -> None:
    monkeypatch.setenv("CORS_ORIGINS", f"https://good.example.com,{origin}")
    with pytest.raises(SettingsError, match="CORS_ORIGINS"):
        load_settings()


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        setattr(load_settings(), "port", 1)  # noqa: B010


def test_every_setting_has_a_description() -> None:
    assert all(field.description for field in Settings.model_fields.values())


def test_build_container_is_not_an_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert upsun.environment({"PLATFORM_APPLICATION_NAME": "app"}) is None
    assert (
        upsun.environment({"PLATFORM_ENVIRONMENT": "main", "PLATFORM_RELATIONSHIPS": "e30="})
        is None
    )
