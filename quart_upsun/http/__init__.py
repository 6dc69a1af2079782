"""What every request and response goes through, and what views need of HTTP.

The middleware gives each request an id, checks its host and its origin, limits its body, and adds
security and caching headers to the response. `preconditions` evaluates `If-Match` and its like.
"""

from typing import TYPE_CHECKING

from quart_upsun.lazy import exporter

if TYPE_CHECKING:
    from quart_upsun.http.bodies import Larger, pieces, uploaded
    from quart_upsun.http.preconditions import conditional
    from quart_upsun.http.redirects import local_target

__all__ = ["Larger", "conditional", "local_target", "pieces", "uploaded"]

if not TYPE_CHECKING:
    __getattr__ = exporter(__name__, __all__, ("bodies", "preconditions", "redirects"))
