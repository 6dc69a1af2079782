"""Access to the toolkit's state of the current application."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from quart_upsun.extension import ToolkitState


def current_toolkit() -> "ToolkitState":
    """Return the toolkit's state of the current application.

    Raises:
        RuntimeError: there is no application context.
        KeyError: the application does not use `QuartUpsun`.
    """
    # Imported here: migrations use the database without Quart, which takes 0.3 s to import.
    from quart import current_app

    state: ToolkitState = current_app.extensions["quart_upsun"]
    return state
