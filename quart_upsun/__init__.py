"""A toolkit for Quart applications on Upsun: database, jobs, mail, API, security and server."""

from typing import TYPE_CHECKING

from quart_upsun.lazy import exporter

if TYPE_CHECKING:
    from quart_upsun.extension import QuartUpsun, ToolkitState

__all__ = ["QuartUpsun", "ToolkitState"]

if not TYPE_CHECKING:
    __getattr__ = exporter(__name__, __all__, ("extension",))
