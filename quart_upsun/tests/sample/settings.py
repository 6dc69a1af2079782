"""Settings of the sample application."""

from pathlib import Path
from typing import ClassVar

import quart_upsun.settings as toolkit

ROOT = Path(__file__).resolve().parents[3]


class Settings(toolkit.Settings):
    """The toolkit's settings, with the migrations of this repository."""

    root: ClassVar[Path] = ROOT


def load() -> Settings:
    """Load the settings from the environment."""
    return toolkit.load_settings(Settings)
