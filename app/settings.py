"""Every variable the application reads: name, type, default, meaning."""

import hashlib
import hmac
import os
import secrets
from email.utils import parseaddr
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

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

from app import upsun
from app.database_url import parse_database_url as parse_database_url

ROOT = Path(__file__).parent.parent
DATA = ROOT / ".data"  # what a laptop keeps: the embedded database, the development key
KEPT_LOGIN = 30 * 24 * 3600  # seconds that "keep me signed in" lasts


class SettingsError(SystemExit):
    """A variable is missing or wrong. Uncaught, it ends the process with the sentence it holds."""


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
    secret_key_fallbacks: SecretStr = Field(
        default=SecretStr(""),
        description="Keys of before, separated by commas: what they signed is still accepted",
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
    run_jobs: bool | None = Field(
        default=None,
        description="Whether server processes do the jobs too; by default only off Upsun",
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
    mail_url: SecretStr = Field(
        default=SecretStr(""),
        description="How mail leaves: smtp://user:password@host:port, smtps://… or console:",
    )
    mail_from: str = Field(
        default="",
        description="The address that mail comes from; by default noreply@ the public host",
    )
    public_origin: str = Field(
        default="",
        description="Scheme and host of the site for links in mails; known by itself on Upsun",
    )
    cors_origins: str = Field(
        default="",
        description="Other sites whose scripts may use the API with tokens, separated by commas",
    )
    platform: upsun.Environment | None = Field(
        default=None, description="Where on Upsun this runs; read from PLATFORM_* by app/upsun.py"
    )

    @field_validator("log_level", mode="before")
    @classmethod
    def _lower_case(cls, value: Any) -> Any:
        return value.lower() if isinstance(value, str) else value

    @field_validator("mail_url")
    @classmethod
    def _known_scheme(cls, value: SecretStr) -> SecretStr:
        url = urlsplit(value.get_secret_value())
        if url.scheme not in {"", "smtp", "smtps", "console"} or bool(url.scheme) != bool(
            value.get_secret_value()
        ):
            raise ValueError("must begin with smtp://, smtps:// or console:")
        if url.scheme.startswith("smtp"):
            if not url.hostname:
                raise ValueError("names no host after smtp://")
            url.port  # noqa: B018 raises ValueError
        return value

    @field_validator("mail_from")
    @classmethod
    def _one_address(cls, value: str) -> str:
        if value and (not parseaddr(value)[1] or not value.isprintable()):
            raise ValueError("is not an address such as noreply@example.com")
        return value

    @field_validator("public_origin")
    @classmethod
    def _only_an_origin(cls, value: str) -> str:
        url = urlsplit(value.rstrip("/"))
        if value and (url.scheme not in {"http", "https"} or not url.netloc or url.path):
            raise ValueError("must be of the form https://www.example.com, without a path")
        return value.rstrip("/")

    @field_validator("cors_origins")
    @classmethod
    def _only_origins(cls, value: str) -> str:
        for origin in filter(None, map(str.strip, value.split(","))):
            url = urlsplit(origin)
            port = f":{url.port}" if url.port is not None else ""  # raises ValueError for none
            if url.scheme not in {"http", "https"} or not url.hostname or "*" in origin:
                raise ValueError("must hold origins such as https://app.example.com")
            if port == {"http": ":80", "https": ":443"}[url.scheme] or (
                origin != f"{url.scheme}://{url.hostname}{port}"
            ):
                # Compared letter by letter with what browsers send, so it must be just that.
                raise ValueError(
                    "must hold origins as browsers send them: no path, no last slash, no usual port"
                )
        return value

    @model_validator(mode="after")
    def _strong_key_on_upsun(self) -> Self:
        if self.platform is None:
            return self
        first, *older = self._secrets()
        if _is_weak(first):
            raise ValueError(
                "SECRET_KEY is missing or weak: set it to at least 32 random characters"
                " (`.environment` takes PLATFORM_PROJECT_ENTROPY when you do not)"
            )
        if any(map(_is_weak, older)):
            raise ValueError("SECRET_KEY_FALLBACKS holds a key of fewer than 32 random characters")
        return self

    @property
    def traceback_pages(self) -> bool:
        """Whether an error page may show the traceback: on a laptop in debug mode only."""
        return self.flask_debug and self.platform is None

    @property
    def secure(self) -> bool:
        """Whether the public reaches the application over https."""
        return self.platform is not None

    @property
    def is_preview(self) -> bool:
        """Whether this is an environment on a copy of production's data."""
        return self.platform is not None and self.platform.is_preview

    @property
    def runs_jobs(self) -> bool:
        """Whether server processes do the jobs as well, because there may be no worker."""
        return self.run_jobs if self.run_jobs is not None else self.platform is None

    @property
    def allowed_origins(self) -> frozenset[str]:
        """Other sites whose scripts may use the API, as browsers call them."""
        return frozenset(filter(None, map(str.strip, self.cors_origins.split(","))))

    @property
    def origin(self) -> str:
        """Scheme and host under which the public reaches the application, for links in mails.

        Never taken from a request, whose Host the client chooses.
        """
        if self.platform is not None:
            # A PUBLIC_ORIGIN set for the whole project would lead from previews to production.
            return self.platform.origin or self.public_origin
        return self.public_origin or f"http://{self.host}:{self.port}"

    def quart(self) -> dict[str, Any]:
        """Return the configuration of Quart and its extensions."""
        # The prefix makes browsers insist on https, this host alone and the whole site.
        prefix = ("__Host-" if self.secure else "") + ("preview-" if self.is_preview else "")
        return {
            "SECRET_KEY": self.keys("cookies")[0],
            "SECRET_KEY_FALLBACKS": self.keys("cookies")[1:],
            "SESSION_COOKIE_NAME": f"{prefix}session",
            "SESSION_COOKIE_SECURE": self.secure,
            "SESSION_COOKIE_SAMESITE": "Lax",
            "QUART_AUTH_COOKIE_NAME": f"{prefix}login",
            "QUART_AUTH_COOKIE_SECURE": self.secure,
            "TOKEN_KEYS": self.keys("tokens"),
            "LIMITS_KEY": self.keys("limits")[0],
            "PUBLIC_ORIGIN": self.origin,
            "QUART_AUTH_DURATION": KEPT_LOGIN,
            "DEVICE_COOKIE_NAME": f"{prefix}device",
            "MAX_CONTENT_LENGTH": 1024 * 1024,
            "BODY_LIMITS": {},  # by path: what features let be larger, see app/bodies.py
            "MAX_FORM_PARTS": 100,  # fields and files together
            "BODY_TIMEOUT": 30,  # seconds for a body to arrive
            "TEMPLATES_AUTO_RELOAD": self.traceback_pages,
        }

    def keys(self, purpose: str) -> list[str]:
        """Derive the keys for one purpose in this environment: one to sign with, older ones after.

        The platform's entropy is the same in production and in every preview. Bound to the
        environment, a cookie signed in one is worth nothing in another.
        """
        environment = self.platform.name if self.platform else "local"
        message = f"{environment}:{purpose}".encode()
        return [
            hmac.new(key.encode(), message, hashlib.sha256).hexdigest() for key in self._secrets()
        ]

    def _secrets(self) -> list[str]:
        older = self.secret_key_fallbacks.get_secret_value().split(",")
        return [self.secret_key.get_secret_value(), *filter(None, map(str.strip, older))]


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


def _is_weak(key: str) -> bool:
    """Tell whether a key can be guessed: it is short, or one word again and again."""
    return len(key) < 32 or len(set(key)) < 10


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
