"""Every variable the application reads: name, type, default, meaning."""

import hashlib
import hmac
import os
import secrets
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from app import upsun

ROOT = Path(__file__).parent.parent
DATA = ROOT / ".data"  # what a laptop keeps: the embedded database, the development key
SCHEMES = {"postgresql", "postgres", "pgsql", "postgresql+asyncpg"}


class SettingsError(SystemExit):
    """A variable is missing or wrong. Uncaught, it ends the process with the sentence it holds."""


def parse_database_url(value: Any) -> URL:
    """Turn any common form of a PostgreSQL address into the one SQLAlchemy's asyncpg dialect takes.

    Raises:
        ValueError: it is no address of a PostgreSQL database.
    """
    try:
        url = make_url(value if isinstance(value, URL) else str(value).strip())
    except (ArgumentError, ValueError):
        raise ValueError(
            "is not of the form postgresql://user:password@host:port/database"
        ) from None
    if url.drivername not in SCHEMES:
        raise ValueError(f"must begin with postgresql://, not {url.drivername}://")
    if not url.database:
        raise ValueError("names no database after the host")
    query = dict(url.query)
    if "sslmode" in query:  # libpq's word, which most providers put into the address
        query["ssl"] = query.pop("sslmode")
    return url.set(drivername="postgresql+asyncpg", query=query)


class DatabaseSettings(BaseSettings):
    """What a migration needs to know; the application needs it as well."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="ignore",
        env_ignore_empty=True,
        arbitrary_types_allowed=True,
        hide_input_in_errors=True,
    )

    # NoDecode: a URL is a named tuple, which would otherwise be read as JSON.
    database_url: Annotated[URL, NoDecode, BeforeValidator(parse_database_url)] = Field(
        description="The PostgreSQL database: postgresql://, postgres:// or pgsql://"
    )


class Settings(DatabaseSettings):
    """The application's settings, frozen once they are read."""

    secret_key: SecretStr = Field(
        default=SecretStr(""),
        description="Signs cookies. On Upsun at least 32 characters; made by itself on a laptop",
    )
    host: str = Field(default="127.0.0.1", description="The address the server listens on")
    port: int = Field(default=8000, ge=0, le=65535, description="The port the server listens on")
    web_concurrency: int | None = Field(
        default=None,
        ge=1,
        le=64,
        description="Server processes; by default as many as the container has room for",
    )
    database_pool_size: int = Field(
        default=8, ge=1, le=100, description="Connections one process keeps to PostgreSQL at most"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="debug, info, warning or error"
    )
    flask_debug: bool = Field(
        default=False,
        description="Verbose logs; off Upsun also templates that reload and tracebacks in pages",
    )
    send_file_max_age_default: int = Field(
        default=0,
        ge=0,
        description="Seconds that static files without a digest in their name may be cached",
    )
    platform: upsun.Environment | None = Field(
        default=None, description="Where on Upsun this runs; read from PLATFORM_* by app/upsun.py"
    )

    @field_validator("log_level", mode="before")
    @classmethod
    def _lower_case(cls, value: Any) -> Any:
        return value.lower() if isinstance(value, str) else value

    @model_validator(mode="after")
    def _strong_key_on_upsun(self) -> Self:
        key = self.secret_key.get_secret_value()
        # A user's own key of one repeated word is as guessable as a short one.
        if self.platform is not None and (len(key) < 32 or len(set(key)) < 10):
            raise ValueError(
                "SECRET_KEY is missing or weak: set it to at least 32 random characters"
                " (`.environment` takes PLATFORM_PROJECT_ENTROPY when you do not)"
            )
        return self

    @property
    def traceback_pages(self) -> bool:
        """Whether an error page may show the traceback: on a laptop in debug mode only."""
        return self.flask_debug and self.platform is None

    @property
    def secure(self) -> bool:
        """Whether the public reaches the application over https."""
        return self.platform is not None

    def quart(self) -> dict[str, Any]:
        """Return the configuration of Quart and its extensions."""
        # The prefix makes browsers insist on https, this host alone and the whole site.
        prefix = "__Host-" if self.secure else ""
        return {
            "SECRET_KEY": self.key("cookies"),
            "SESSION_COOKIE_NAME": f"{prefix}session",
            "SESSION_COOKIE_SECURE": self.secure,
            "SESSION_COOKIE_SAMESITE": "Lax",
            "QUART_AUTH_COOKIE_NAME": f"{prefix}login",
            "QUART_AUTH_COOKIE_SECURE": self.secure,
            "QUART_AUTH_DURATION": 30 * 24 * 3600,
            "MAX_CONTENT_LENGTH": 1024 * 1024,  # forms only; a view that takes files says so
            "TEMPLATES_AUTO_RELOAD": self.traceback_pages,
        }

    def key(self, purpose: str) -> str:
        """Derive the key for one purpose in this environment.

        The platform's entropy is the same in production and in every preview. Bound to the
        environment, a cookie signed in one is worth nothing in another.
        """
        environment = self.platform.name if self.platform else "local"
        message = f"{environment}:{purpose}".encode()
        secret = self.secret_key.get_secret_value().encode()
        return hmac.new(secret, message, hashlib.sha256).hexdigest()


def load() -> Settings:
    """Read the settings from the environment.

    Raises:
        SettingsError: one sentence that names the variable.
    """
    environment = upsun.environment(os.environ)
    try:
        settings = Settings(platform=environment)
        if environment is None and not settings.secret_key.get_secret_value():
            settings = settings.model_copy(update={"secret_key": _development_key()})
    except ValidationError as error:
        raise SettingsError(_sentence(error)) from None
    return settings


def load_database_url() -> URL:
    """Read `DATABASE_URL` alone.

    Raises:
        SettingsError: it is missing or malformed.
    """
    try:
        return DatabaseSettings().database_url
    except ValidationError as error:
        raise SettingsError(_sentence(error)) from None


def _development_key() -> SecretStr:
    """Return the laptop's own key, made at the first start so that logins survive restarts."""
    path = DATA / "secret_key"
    try:
        DATA.mkdir(exist_ok=True)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            return SecretStr(path.read_text().strip())
        with os.fdopen(descriptor, "w") as file:
            key = secrets.token_urlsafe(48)
            file.write(key)
        return SecretStr(key)
    except OSError as error:
        raise SettingsError(
            f"SECRET_KEY is not set, and a development key cannot be kept in {path}:"
            f" {error.strerror}."
        ) from None


def _sentence(error: ValidationError) -> str:
    """Say the first thing that is wrong, with the variable's name and never with its value."""
    first = error.errors(include_url=False, include_input=False)[0]
    message = first["msg"].removeprefix("Value error, ")
    if not first["loc"]:  # raised by a check of the whole, which names the variable itself
        return f"{message}."
    name = str(first["loc"][0]).upper()
    if first["type"] == "missing":
        return f"{name} is not set."
    if first["type"] == "value_error":
        return f"{name} {message}."
    return f"{name} is not valid: {message[0].lower()}{message[1:]}."
