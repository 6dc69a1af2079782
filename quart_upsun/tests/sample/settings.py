"""The sample's settings: the toolkit's."""

from pathlib import Path
from typing import ClassVar

import quart_upsun.settings as toolkit

ROOT = Path(__file__).resolve().parents[3]


class Settings(toolkit.Settings):
    """The sample has the migrations of the repository: the toolkit's tables are among them."""

    root: ClassVar[Path] = ROOT


def load() -> Settings:
    """Read the settings from the environment."""
    return toolkit.load_settings(Settings)
