"""The toolkit's settings, read from environment variables. An application subclasses `Settings`."""

import fcntl
import hashlib
import hmac
import os
import re
import secrets
import shlex
import sys
from collections.abc import Callable
from email.headerregistry import Address
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar
from urllib.parse import SplitResult, urlsplit

from dotenv import load_dotenv
from pydantic import (
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from sqlalchemy import URL

from quart_upsun import platform as upsun
from quart_upsun.command_line import current_command, reject_flask_command
from quart_upsun.database.ownership import Identity
from quart_upsun.database.url import missing_url, parse_database_url
from quart_upsun.files import write_atomically

DEFAULT_PORTS = {"http": 80, "https": 443}
# Labels that start and end with a letter or digit. The last is not a number, as in an IP address.
HOST_NAME = re.compile(
    r"(?:[a-z0-9](?:[a-z0-9_-]{0,61}[a-z0-9])?\.)*(?![0-9]+\Z)"
    r"[a-z0-9](?:[a-z0-9_-]{0,61}[a-z0-9])?",
    re.IGNORECASE,
)


_UNUSED_URL = "postgresql://127.0.0.1/unused"  # passes validation and is then replaced
# What to do about a missing variable.
_EXAMPLES = {"DATABASE_URL": " Set it to postgresql://user:password@host:port/database."}

# Messages for pydantic's types of errors: https://docs.pydantic.dev/latest/errors/validation_errors/
_CONSTRAINTS = {
    "bool_parsing": "must be 1 or 0",
    "greater_than_equal": "must be at least {ge}",
    "int_parsing": "must be a whole number",
    "less_than_equal": "must be at most {le}",
    "literal_error": "must be {expected}",
    "string_too_long": "must have at most {max_length} characters",
    "string_too_short": "must have at least {min_length} characters",
}


def _parse_optional_url(value: Any) -> URL | None:
    return None if value is None else parse_database_url(value)


class SettingsError(SystemExit):
    """A variable is missing or invalid. Uncaught, it exits the process with its message."""


class DatabaseSettings(BaseSettings):
    """The settings of the database, which are all that a migration needs."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="ignore",
        env_ignore_empty=True,
        arbitrary_types_allowed=True,
        hide_input_in_errors=True,
    )

    # NoDecode: a URL is a named tuple, which pydantic-settings would parse as JSON.
    database_url: Annotated[URL, NoDecode, BeforeValidator(parse_database_url)] = Field(
        description="URL of the PostgreSQL database: postgresql://, postgres:// or pgsql://"
    )
    database_direct_url: Annotated[URL | None, NoDecode, BeforeValidator(_parse_optional_url)] = (
        Field(
            default=None,
            description="URL of PostgreSQL itself if DATABASE_URL leads to a connection pooler",
        )
    )
    database_environment: str = Field(
        default="",
        max_length=255,
        description="The environment to act for off Upsun; by default this checkout",
    )
    checkout: str = Field(
        default="",
        exclude=True,  # no variable, as `platform`
        description="The name of this checkout off Upsun; stored in .data/environment",
    )
    platform: upsun.Environment | None = Field(
        default=None, exclude=True, description="The Upsun environment; read from PLATFORM_*"
    )

    @property
    def direct_url(self) -> URL:
        """The database for what needs a connection of its own: migrations, locks and LISTEN."""
        return self.database_direct_url or self.database_url

    @property
    def identity(self) -> Identity:
        """The environment of this process, for comparison with the owner of the database."""
        named = self.database_environment
        if self.platform is None:
            return Identity(named or self.checkout, "local", is_named=bool(named))
        address = (self.direct_url.host or "", self.direct_url.port or 5432)
        if address in self.platform.databases:
            return Identity(self.platform.name, self.platform.type, has_own_database=True)
        return Identity(named or self.platform.name, self.platform.type, is_named=bool(named))


class Settings(DatabaseSettings):
    """The toolkit's settings; immutable."""

    name: ClassVar[str] = "app"
    """The application's name. Cookie names contain it: applications on different ports of one host
    share their cookies."""
    root: ClassVar[Path] = Path()
    """The application's directory, which contains `alembic/` and, on a laptop, `.data/`."""

    development: ClassVar[str] = ""
    """The module that runs a command with a local database: `python -m development COMMAND`."""

    site_name: str = Field(
        default="Quart application", min_length=1, description="The name of the site"
    )
    secret_key: SecretStr = Field(
        default=SecretStr(""),
        description="Signs cookies. On Upsun at least 32 characters; generated on a laptop",
    )
    secret_key_fallbacks: SecretStr = Field(
        default=SecretStr(""),
        description="Previous keys, comma-separated, whose signatures are still accepted",
    )
    host: str = Field(default="127.0.0.1", description="The address the server listens on")
    port: int = Field(default=8000, ge=0, le=65535, description="The port the server listens on")
    web_concurrency: int | None = Field(
        default=None,
        ge=1,
        le=64,
        description="Number of server processes; by default as many as fit the container",
    )
    database_pool_size: int = Field(
        default=8, ge=1, le=100, description="Maximum size of the connection pool of a process"
    )
    database_replica_url: Annotated[URL | None, NoDecode, BeforeValidator(_parse_optional_url)] = (
        Field(default=None, description="URL of a read replica of the database, which serves reads")
    )
    run_jobs: bool | None = Field(
        default=None,
        description="Whether server processes also run background jobs; by default only off Upsun",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="debug, info, warning or error"
    )
    request_log: Literal["slow", "all", "off"] = Field(
        default="slow",
        description="Which requests and jobs are logged: slow (and failed) ones, all or off",
    )
    slow_request_ms: int = Field(
        default=500,
        ge=0,
        description="Milliseconds after which a request or a job counts as slow",
    )
    metrics: bool = Field(
        default=True, description="Whether the metrics of the operations page are collected"
    )
    trust_trace_headers: bool = Field(
        default=False,
        description=(
            "Whether traceparent and X-Request-ID come from a proxy that sets or removes them;"
            " Upsun's router passes on those of the client"
        ),
    )
    otel_exporter_otlp_endpoint: str = Field(
        default="",
        description="URL of an OTLP collector, which gets traces and metrics; off by default",
    )
    sentry_dsn: SecretStr = Field(
        default=SecretStr(""),
        description="DSN of a project in Sentry or a compatible service, which gets errors",
    )
    metrics_token: SecretStr = Field(
        default=SecretStr(""),
        description="Access token of /metrics for Prometheus, at least 16 characters; off without",
    )
    flask_debug: bool = Field(
        default=False,
        description="Verbose logs; off Upsun also template reloading and traceback pages",
    )
    send_file_max_age_default: int = Field(
        default=0,
        ge=0,
        description="Seconds for which static files without a digest in their name are cached",
    )
    mail_url: SecretStr = Field(
        default=SecretStr(""),
        description="How mail is sent: smtp://user:password@host:port, smtps://… or console:",
    )
    mail_from: str = Field(
        default="",
        description="The sender of mail; by default noreply@ the public host",
    )
    public_origin: str = Field(
        default="",
        description=(
            "Scheme and host of the site in browsers; detected on Upsun. https:// makes cookies"
            " Secure and sends HSTS"
        ),
    )
    cors_origins: str = Field(
        default="",
        description="Origins whose scripts may call the API with access tokens, comma-separated",
    )

    @field_validator("secret_key", "secret_key_fallbacks", "mail_url")
    @classmethod
    def _utf8(cls, value: SecretStr) -> SecretStr:
        try:
            value.get_secret_value().encode()
        except UnicodeEncodeError:
            raise ValueError("is not valid UTF-8") from None
        return value

    @field_validator("log_level", "request_log", mode="before")
    @classmethod
    def _lower_case(cls, value: Any) -> Any:
        return value.strip().lower() if isinstance(value, str) else value

    @field_validator("host")
    @classmethod
    def _one_host(cls, value: str) -> str:
        value = value.strip()
        if value.startswith("[") and value.endswith("]"):  # brackets as in a URL
            value = value[1:-1]
        if not _is_host(value):
            raise ValueError(
                "is not a host name or an IP address. Use, for example, 127.0.0.1 or ::1"
            )
        return value

    @field_validator("mail_url")
    @classmethod
    def _known_scheme(cls, value: SecretStr) -> SecretStr:
        text = value.get_secret_value().strip()
        value = SecretStr(text)
        if text.lower() in {"", "console:", "console://"}:
            return value
        if not text.lower().startswith(("smtp://", "smtps://")):
            raise ValueError("must start with smtp:// or smtps://, or be `console:`")
        url = _split_url(text)
        if url is None or url.path not in {"", "/"} or "?" in text or "#" in text:
            # Python's own message quotes the port, which may be a part of the password.
            raise ValueError(
                "is malformed. Use smtp://user:password@host:port, and write `/`, `?`, `#`, `@`,"
                " `:` and `%` in user and password as %2F, %3F, %23, %40, %3A and %25"
            )
        if not url.hostname:
            raise ValueError("has no host. Use smtp://user:password@host:port")
        if not _is_host(url.hostname):
            raise ValueError("has an invalid host. Use a host name or an IP address")
        return value

    @field_validator("otel_exporter_otlp_endpoint")
    @classmethod
    def _collector(cls, value: str) -> str:
        url = _split_url(value)
        is_valid = (
            url is not None
            and url.scheme in DEFAULT_PORTS
            and url.hostname is not None
            and _is_host(url.hostname)
            and not (url.username or url.password or url.query or url.fragment)
        )
        if value and not is_valid:
            raise ValueError("is not the URL of a collector. Use, for example, http://host:4318")
        return value

    @field_validator("sentry_dsn")
    @classmethod
    def _dsn(cls, value: SecretStr) -> SecretStr:
        text = value.get_secret_value()
        url = _split_url(text)
        is_valid = (
            url is not None
            and url.scheme in DEFAULT_PORTS
            and url.hostname is not None
            and _is_host(url.hostname)
            and url.username
            and url.path.rpartition("/")[2].isdecimal()
            and not (url.query or url.fragment)
        )
        if text and not is_valid:
            raise ValueError(
                "is malformed. Use the DSN of the project's settings: https://key@host/project"
            )
        return value

    @field_validator("metrics_token")
    @classmethod
    def _strong_token(cls, value: SecretStr) -> SecretStr:
        text = value.get_secret_value()
        if text and (len(text) < 16 or not text.isascii() or not text.isprintable() or " " in text):
            raise ValueError("must have at least 16 ASCII characters, and no spaces")
        return value

    @field_validator("mail_from")
    @classmethod
    def _one_address(cls, value: str) -> str:
        if not value:
            return value
        match = re.fullmatch(r"\s*(?:([^<>]*)<([^<>\s]+)>|([^<>\s]+))\s*", value)
        address = match and _mail_address(match[2] or match[3])
        if not match or not address or not value.isprintable():
            raise ValueError(
                "is not an email address. Use, for example, noreply@example.com or"
                " Site <noreply@example.com>"
            )
        name = (match[1] or "").strip().removeprefix('"').removesuffix('"')
        return str(Address(name, addr_spec=address))  # quoted where a header requires it

    @field_validator("public_origin")
    @classmethod
    def _only_an_origin(cls, value: str) -> str:
        if not value:
            return value
        origin = _parse_origin(value.strip().removesuffix("/"))
        if origin is None:
            raise ValueError("is not an origin. Use https://www.example.com, without a path")
        return origin

    @field_validator("cors_origins")
    @classmethod
    def _only_origins(cls, value: str) -> str:
        for each in filter(None, map(str.strip, value.split(","))):
            origin = _parse_origin(each)
            if origin is None:
                raise ValueError(
                    "contains an invalid origin. Use origins such as https://app.example.com"
                )
            if origin != each:
                # It is compared with the Origin header as a string.
                raise ValueError(
                    "contains an origin that no browser sends. Use lower case, without a path, a"
                    " trailing slash or the default port"
                )
        return value

    @model_validator(mode="after")
    def _strong_key_on_upsun(self) -> Self:
        if self.platform is None:
            return self
        first, *older = self._secrets()
        if _is_weak(first):
            raise ValueError(
                "SECRET_KEY is missing or weak. Set it to at least 32 random characters, or unset"
                " it to let `.environment` use PLATFORM_PROJECT_ENTROPY"
            )
        if any(map(_is_weak, older)):
            raise ValueError(
                "SECRET_KEY_FALLBACKS contains a weak key. Each key must have at least 32 random"
                " characters"
            )
        return self

    @property
    def traceback_pages(self) -> bool:
        """Whether error pages show tracebacks: only on a laptop in debug mode."""
        return self.flask_debug and self.platform is None

    @property
    def secure(self) -> bool:
        """Whether the site is served over HTTPS.

        Off Upsun, for instance behind a TLS proxy, `PUBLIC_ORIGIN` says so.
        """
        return self.platform is not None or self.public_origin.startswith("https://")

    @property
    def is_preview(self) -> bool:
        """Whether this is a preview environment, which has a copy of production's data."""
        return self.platform is not None and self.platform.is_preview

    @property
    def runs_jobs(self) -> bool:
        """Whether server processes also run background jobs."""
        return self.run_jobs if self.run_jobs is not None else self.platform is None

    @property
    def allowed_origins(self) -> frozenset[str]:
        """The origins whose scripts may call the API (CORS)."""
        return frozenset(filter(None, map(str.strip, self.cors_origins.split(","))))

    @property
    def origin(self) -> str:
        """The public origin (scheme and host) of the site, for links in mails.

        It never comes from a request, because the client chooses the Host header.
        """
        if self.platform is not None:
            # A PUBLIC_ORIGIN of the whole project would make previews link to production.
            return self.platform.origin or self.public_origin
        host = f"[{self.host}]" if ":" in self.host else self.host
        return self.public_origin or f"http://{host}:{self.port}"

    @property
    def cookie_prefix(self) -> str:
        """The prefix of cookie names: of this application, in this environment."""
        # Browsers require Secure, Path=/ and no Domain for `__Host-` cookies.
        preview = "preview-" if self.is_preview else ""
        return f"{'__Host-' if self.secure else ''}{self.name}-{preview}"

    def quart(self) -> dict[str, Any]:
        """Return the configuration of Quart and the toolkit."""
        return {
            "SECRET_KEY": self.keys("cookies")[0],
            "SECRET_KEY_FALLBACKS": self.keys("cookies")[1:],
            "SESSION_COOKIE_NAME": f"{self.cookie_prefix}session",
            "SESSION_COOKIE_SECURE": self.secure,
            "SESSION_COOKIE_SAMESITE": "Lax",
            "LOGIN_COOKIE_NAME": f"{self.cookie_prefix}login",
            "POSITION_COOKIE_NAME": f"{self.cookie_prefix}position",
            "TOKEN_KEYS": self.keys("tokens"),
            "ENCRYPTION_KEYS": self.keys("encryption"),
            "LIMITS_KEY": self.keys("limits")[0],
            "PUBLIC_ORIGIN": self.origin,
            "MAX_CONTENT_LENGTH": 1024 * 1024,
            "BODY_LIMITS": {},  # larger limits by path; see http/bodies.py
            "MAX_FORM_PARTS": 100,  # form fields plus files
            "BODY_TIMEOUT": 30,  # seconds to receive a request body
            "TEMPLATES_AUTO_RELOAD": self.traceback_pages,
        }

    def keys(self, purpose: str) -> list[str]:
        """Derive the keys for a purpose: the signing key, then the previous keys.

        The platform's entropy is the same in production and all previews. The keys depend on the
        environment, so that a cookie of one is invalid in another.
        """
        environment = self.platform.name if self.platform else "local"
        message = f"{environment}:{purpose}".encode()
        return [
            hmac.new(key.encode(), message, hashlib.sha256).hexdigest() for key in self._secrets()
        ]

    def _secrets(self) -> list[str]:
        older = self.secret_key_fallbacks.get_secret_value().split(",")
        return [self.secret_key.get_secret_value(), *filter(None, map(str.strip, older))]


AnySettings = TypeVar("AnySettings", bound=Settings)


def load_settings(kind: type[AnySettings]) -> AnySettings:
    """Read an application's settings from the environment.

    While a `quart` command loads the application, DATABASE_URL may be missing: commands that use
    the database then exit with a message.

    Args:
        kind: the application's settings class, with its `root`.

    Raises:
        SettingsError: a variable is missing or invalid. The message names it.
        SystemExit: Flask's own command is loading the application.
    """
    reject_flask_command()
    load_env_file(kind.root)
    environment = upsun.environment(os.environ)
    data = kind.root / ".data"
    is_url_missing = current_command() is not None and not os.environ.get("DATABASE_URL")
    given: dict[str, Any] = {"database_url": _UNUSED_URL} if is_url_missing else {}
    try:
        settings = kind(platform=environment, checkout=_checkout(environment, data), **given)
        if is_url_missing:
            url = missing_url(_missing_url_message(kind, environment))
            settings = settings.model_copy(
                update={"database_url": url, "database_direct_url": None}
            )
        if environment is None and not settings.secret_key.get_secret_value():
            settings = settings.model_copy(update={"secret_key": _development_key(data)})
    except ValidationError as error:
        raise SettingsError(_error_message(error)) from None
    return settings


def load_env_file(root: Path) -> None:
    """Set the variables in `.env`, as the `quart` command does. Variables that are set win.

    Does nothing on Upsun, or if QUART_SKIP_DOTENV is set, which the `quart` command heeds too.

    Args:
        root: the application's directory.

    Raises:
        SettingsError: the file cannot be read.
    """
    skips = os.environ.get("QUART_SKIP_DOTENV", "").lower() not in {"", "0", "false", "no"}
    path = root / ".env"
    if skips or upsun.environment(os.environ) is not None or not path.is_file():
        return
    try:
        load_dotenv(path, encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"Cannot read {path}: {error.strerror}.") from None
    except UnicodeError:
        raise SettingsError(f"Cannot read {path}: it is not valid UTF-8.") from None


def load_database_settings(root: Path, url: str | None = None) -> DatabaseSettings:
    """Read the settings of the database from the environment.

    Args:
        root: the application's directory.
        url: the URL of the database; DATABASE_URL by default.

    Raises:
        SettingsError: a variable is missing or invalid.
    """
    load_env_file(root)
    environment = upsun.environment(os.environ)
    try:
        given: dict[str, Any] = {} if url is None else {"database_url": url}
        checkout = _checkout(environment, root / ".data")
        return DatabaseSettings(platform=environment, checkout=checkout, **given)
    except ValidationError as error:
        raise SettingsError(_error_message(error)) from None


def _missing_url_message(kind: type[Settings], environment: upsun.Environment | None) -> str:
    """Return a message that names the command to run instead, if there is one."""
    message = f"DATABASE_URL is not set.{_EXAMPLES['DATABASE_URL']}"
    if environment is not None or not kind.development:
        return message
    python = os.path.relpath(sys.executable)
    if python.startswith(".."):
        python = sys.executable
    command = shlex.join([python, "-m", kind.development, "quart", *sys.argv[1:]])
    return f"{message[:-1]}, or use the database of this checkout: {command}"


def _is_weak(key: str) -> bool:
    """Tell whether a key is easy to guess: short or repetitive."""
    return len(key) < 32 or len(set(key)) < 10


def _checkout(environment: upsun.Environment | None, data: Path) -> str:
    """Return the name of this checkout, which is random and created on first use.

    Returns "" on Upsun, if DATABASE_ENVIRONMENT is set, or if the name cannot be stored.
    """
    if environment is not None or os.environ.get("DATABASE_ENVIRONMENT"):
        return ""
    try:
        return _read_or_create(data / "environment", lambda: f"local-{secrets.token_hex(4)}")
    except OSError:
        return ""


def _development_key(data: Path) -> SecretStr:
    """Return the development key, generated once so that logins survive restarts."""
    path = data / "secret_key"
    try:
        key = _read_or_create(path, lambda: secrets.token_urlsafe(48))
    except OSError as error:
        raise SettingsError(
            f"SECRET_KEY is not set, and a development key cannot be stored in {path}:"
            f" {error.strerror}."
        ) from None
    if _is_weak(key):
        raise SettingsError(
            f"SECRET_KEY is not set, and the key in {path} is weak. Delete the file to generate"
            " a new key."
        )
    return SecretStr(key)


def _read_or_create(path: Path, make: Callable[[], str]) -> str:
    """Return the content of a file; create it if it is missing or empty.

    Processes that start at the same time get the same content.
    """
    path.parent.mkdir(exist_ok=True)
    with path.with_name(f"{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        content = path.read_text(errors="replace").strip() if path.exists() else ""
        if not content:  # missing, or left empty by a crash
            content = make()
            write_atomically(path, content.encode())
    return content


def _mail_address(text: str) -> str | None:
    """Return an email address with its domain in ASCII; None if it is invalid.

    Accepts domains of private networks, such as `localhost`, unlike email-validator.
    """
    # Imported here because it takes 15 ms, and the deploy hook sends no mail.
    from email_validator import EmailNotValidError, validate_email

    local, _, domain = text.rpartition("@")
    try:
        domain = domain.encode("idna").decode()
        # Not every mail server accepts a non-ASCII sender.
        validate_email(f"{local}@example.com", allow_smtputf8=False, check_deliverability=False)
    except (EmailNotValidError, UnicodeError):
        return None
    return f"{local}@{domain}" if _is_host(domain) else None


def _split_url(text: str) -> SplitResult | None:
    """Split a URL; None if it is malformed or its port is not a number from 1 to 65535.

    urlsplit itself ignores control characters and line breaks, and its errors quote the URL.
    """
    if not text.isprintable() or " " in text:
        return None
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError:
        return None
    return None if port == 0 or url.netloc.endswith(":") else url


def _parse_origin(text: str) -> str | None:
    """Return an origin in the form of the Origin header; None if it is invalid."""
    scheme, _, rest = text.partition("://")
    host, colon, port = rest.rpartition(":") if re.search(r":[^\]]*$", rest) else (rest, "", "")
    if not host.isascii():
        try:
            text = f"{scheme}://{host.encode('idna').decode()}{colon}{port}"
        except UnicodeError:
            return None
    url = _split_url(text)
    if url is None or url.scheme not in DEFAULT_PORTS or not url.hostname:
        return None
    if (
        not text.isascii()
        or url.path
        or "?" in text
        or "#" in text
        or "@" in url.netloc
        or not _is_host(url.hostname)
    ):
        return None
    host = f"[{ip_address(url.hostname)}]" if ":" in url.hostname else url.hostname
    port = "" if url.port in {None, DEFAULT_PORTS[url.scheme]} else f":{url.port}"
    return f"{url.scheme}://{host}{port}"


def _is_host(text: str) -> bool:
    """Tell whether a text is a valid host name, or an IP address without brackets."""
    try:
        ip_address(text)
    except ValueError:
        return len(text) <= 253 and HOST_NAME.fullmatch(text) is not None
    return True


def _error_message(error: ValidationError) -> str:
    """Return a message about the first error, with the variable's name and without its value."""
    first = error.errors(include_url=False, include_input=False)[0]
    message = first["msg"].removeprefix("Value error, ")
    if not first["loc"]:  # from a model validator, which names the variable itself
        return f"{message}."
    name = str(first["loc"][0]).upper()
    if first["type"] == "missing":
        return f"{name} is not set.{_EXAMPLES.get(name, '')}"
    if first["type"] == "value_error":
        return f"{name} {message}."
    if first["type"] in _CONSTRAINTS:
        return f"{name} {_CONSTRAINTS[first['type']].format(**first.get('ctx', {}))}."
    return f"{name} is invalid. {message}."
