"""A toolkit for Quart applications on Upsun: everything around the features of an application."""

from typing import TYPE_CHECKING

from quart_upsun.lazy import exporter

if TYPE_CHECKING:
    from quart_upsun.extension import QuartUpsun, State

__all__ = ["QuartUpsun", "State"]

if not TYPE_CHECKING:
    __getattr__ = exporter(__name__, __all__, ("extension",))
