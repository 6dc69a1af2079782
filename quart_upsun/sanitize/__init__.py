"""`quart sanitize`: anonymize a preview's copy of production's data.

`__sanitize__` of each model declares what happens to its columns, with the rules in
`quart_upsun.database.anonymization`.
"""

from typing import TYPE_CHECKING

from quart_upsun.lazy import exporter

if TYPE_CHECKING:
    from quart_upsun.sanitize.commands import sanitize_command
    from quart_upsun.sanitize.sanitizer import SanitizeError

__all__ = ["SanitizeError", "sanitize_command"]

if not TYPE_CHECKING:
    __getattr__ = exporter(__name__, __all__, ("commands", "sanitizer"))
