"""Orders, which belong to users."""

from . import models, views  # noqa: F401
