"""HTTP middleware, request bodies, conditional requests and safe redirects.

The middleware assigns request ids, checks the Host header, rejects cross-site requests, limits
request bodies, and adds security and caching headers to responses. `preconditions` implements
`If-Match`, `If-None-Match` and the other conditional request headers.
"""

from typing import TYPE_CHECKING

from quart_upsun.lazy import exporter

if TYPE_CHECKING:
    from quart_upsun.http.bodies import BodyLimit, iterate_body, iterate_uploaded_file
    from quart_upsun.http.preconditions import make_conditional
    from quart_upsun.http.redirects import safe_redirect_target

__all__ = [
    "BodyLimit",
    "iterate_body",
    "iterate_uploaded_file",
    "make_conditional",
    "safe_redirect_target",
]

if not TYPE_CHECKING:
    __getattr__ = exporter(__name__, __all__, ("bodies", "preconditions", "redirects"))
