"""This application's settings: name, type, default, meaning. The toolkit's come with the base."""

from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

import quart_upsun.settings as toolkit

ROOT = Path(__file__).parent.parent
DATA_DIRECTORY = ROOT / ".data"  # what a laptop keeps: the embedded database, the development key


class Settings(toolkit.Settings):
    """The application's settings, frozen once they are read."""

    root: ClassVar[Path] = ROOT

    site_name: str = Field(
        default="quart-upsun",
        min_length=1,
        max_length=60,
        description="The name of the site, in pages, mails and the API document",
    )
    session_hours: int = Field(
        default=12,
        ge=1,
        le=24 * 365,
        description="Hours that a login lasts without “Keep me logged in”",
    )
    remember_days: int = Field(
        default=30, ge=1, le=365, description="Days that a login lasts with “Keep me logged in”"
    )

    def quart(self) -> dict[str, Any]:
        """Return the configuration of Quart, its extensions and this application."""
        config = super().quart()
        return {
            **config,
            "QUART_AUTH_COOKIE_NAME": config["LOGIN_COOKIE_NAME"],
            "QUART_AUTH_COOKIE_SECURE": self.secure,
            "QUART_AUTH_DURATION": self.remember_days * 24 * 3600,
            "SESSION_SECONDS": self.session_hours * 3600,
            "DEVICE_COOKIE_NAME": f"{self.cookie_prefix}device",
        }


def load_settings() -> Settings:
    """Read the settings from the environment.

    Raises:
        SettingsError: one sentence that names the variable.
    """
    return toolkit.load_settings(Settings)


def load_database_settings(url: str | None = None) -> toolkit.DatabaseSettings:
    """Read what a migration needs from the environment.

    Args:
        url: of the database; by default what DATABASE_URL says.

    Raises:
        SettingsError: a variable is missing or malformed.
    """
    return toolkit.load_database_settings(Settings.root, url)
