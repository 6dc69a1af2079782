"""The application's settings. The base class adds those of the toolkit."""

from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

import quart_upsun.settings as toolkit
from app.user.oidc.settings import ProviderSettings
from app.user.two_factor.settings import TwoFactorSettings

ROOT = Path(__file__).parent.parent
DATA_DIRECTORY = ROOT / ".data"  # embedded database and development key of a laptop


class Settings(TwoFactorSettings, ProviderSettings, toolkit.Settings):
    """The application's settings. Immutable."""

    name: ClassVar[str] = "quart-upsun"
    root: ClassVar[Path] = ROOT
    development: ClassVar[str] = "development"

    site_name: str = Field(
        default="quart-upsun",
        min_length=1,
        max_length=60,
        description="Site name in pages, emails and the OpenAPI document",
    )
    session_hours: int = Field(
        default=12,
        ge=1,
        le=24 * 365,
        description="Hours until a login without “Keep me logged in” expires",
    )
    remember_days: int = Field(
        default=30, ge=1, le=365, description="Days until a login with “Keep me logged in” expires"
    )
    passkeys: bool = Field(default=True, description="Log in with passkeys (WebAuthn)")

    def quart(self) -> dict[str, Any]:
        """Return the configuration for Quart, its extensions and this application."""
        config = super().quart()
        return {
            **config,
            "QUART_AUTH_COOKIE_NAME": config["LOGIN_COOKIE_NAME"],
            "QUART_AUTH_COOKIE_SECURE": self.secure,
            "QUART_AUTH_DURATION": self.remember_days * 24 * 3600,
            "SESSION_SECONDS": self.session_hours * 3600,
            "DEVICE_COOKIE_NAME": f"{self.cookie_prefix}device",
            "PENDING_LOGIN_COOKIE_NAME": f"{self.cookie_prefix}pending-login",
        }


def load_settings() -> Settings:
    """Read the settings from the environment.

    Raises:
        SettingsError: an environment variable is missing or invalid. The message names it.
    """
    return toolkit.load_settings(Settings)


def load_database_settings(url: str | None = None) -> toolkit.DatabaseSettings:
    """Read the settings for migrations from the environment.

    Args:
        url: the database URL; DATABASE_URL by default.

    Raises:
        SettingsError: an environment variable is missing or invalid.
    """
    return toolkit.load_database_settings(Settings.root, url)
