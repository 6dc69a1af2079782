"""Cross-origin resource sharing (CORS) for the API: allow the origins in `CORS_ORIGINS`, or none.

Other origins authenticate with access tokens only. Credentials are never allowed, so browsers do
not send the login cookie.

Why not quart-cors: docs/decisions/cors.md.
"""

from collections.abc import Iterable

from quart import Quart, Response, request

from quart_upsun.http import credentials

METHODS = "GET, HEAD, POST, PUT, PATCH, DELETE"
ALLOWED_HEADERS = "Authorization, X-API-Key, Content-Type, Idempotency-Key, If-Match, If-None-Match"
EXPOSED_HEADERS = "ETag, Link, Location, Retry-After, Idempotency-Replayed, X-Request-ID"
PREFLIGHT_SECONDS = 600


def init_app(app: Quart, origins: Iterable[str]) -> None:
    """Allow these origins; without any, responses have no CORS headers."""
    allowed = frozenset(origins)
    if allowed:

        @app.after_request
        async def allow(response: Response) -> Response:
            if credentials.is_api_request(request):
                _allow(response, allowed)
            return response


def _allow(response: Response, allowed: frozenset[str]) -> None:
    headers = response.headers
    response.vary.add("Origin")
    origin = request.headers.get("Origin")
    if origin not in allowed:
        return
    headers["Access-Control-Allow-Origin"] = origin
    if request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
        # Quart itself answers the OPTIONS request.
        headers["Access-Control-Allow-Methods"] = METHODS
        headers["Access-Control-Allow-Headers"] = ALLOWED_HEADERS
        headers["Access-Control-Max-Age"] = str(PREFLIGHT_SECONDS)
    else:
        headers["Access-Control-Expose-Headers"] = EXPOSED_HEADERS
