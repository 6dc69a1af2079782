"""HTML pages: error pages, health checks, static assets, templates and form helpers."""

from typing import TYPE_CHECKING

from quart_upsun.lazy import exporter

if TYPE_CHECKING:
    from quart_upsun.web.assets import AssetsMissingError
    from quart_upsun.web.forms import add_form_error, clean_line, strip

__all__ = ["AssetsMissingError", "add_form_error", "clean_line", "strip"]

if not TYPE_CHECKING:
    __getattr__ = exporter(__name__, __all__, ("assets", "forms"))
