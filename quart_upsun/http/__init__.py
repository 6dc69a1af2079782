"""What every request and response goes through, and what views need of HTTP.

The middleware gives each request an id, checks its host and its origin, limits its body, and adds
security and caching headers to the response. `preconditions` evaluates `If-Match` and its like.
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
