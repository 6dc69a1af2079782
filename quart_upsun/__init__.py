"""A toolkit for Quart applications on Upsun: everything around the features of an application."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quart_upsun.extension import QuartUpsun, State

__all__ = ["QuartUpsun", "State"]


def __getattr__(name: str) -> Any:
    # Imported when it is asked for: a migration needs the database alone, without Quart.
    if name in __all__:
        from quart_upsun import extension

        return getattr(extension, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
