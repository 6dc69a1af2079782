"""Public pages."""

from . import views  # noqa: F401
