"""Maintenance and read-only mode, switched on the command line for all processes.

`quart maintenance on` and `quart read-only on` write to a small table. Each process keeps the state
in memory, and follows the table with one connection of its own, so that requests need no query.
"""

from typing import TYPE_CHECKING

from quart_upsun.lazy import exporter

if TYPE_CHECKING:
    from quart_upsun.switches.state import (
        MAINTENANCE,
        READ_ONLY,
        Switch,
        SwitchedOffError,
        Switches,
        current_switches,
    )

__all__ = [
    "MAINTENANCE",
    "READ_ONLY",
    "Switch",
    "SwitchedOffError",
    "Switches",
    "current_switches",
]

if not TYPE_CHECKING:
    __getattr__ = exporter(__name__, __all__, ("state",))
