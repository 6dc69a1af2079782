"""Rate limits, the audit trail (`audit`), signed tokens (`signing`) and `encryption` at rest."""

from typing import TYPE_CHECKING

from quart_upsun.lazy import exporter

if TYPE_CHECKING:
    from quart_upsun.security.limits import Limit, by_account, by_client, is_search, rate_limit

__all__ = ["Limit", "by_account", "by_client", "is_search", "rate_limit"]

if not TYPE_CHECKING:
    __getattr__ = exporter(__name__, __all__, ("limits",))
