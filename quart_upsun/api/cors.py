"""Which other sites may ask the API from a browser: those that `CORS_ORIGINS` names, or none.

With tokens only: the login cookie stays where it is, because credentials are never allowed.

Why not quart-cors: docs/decisions/cors.md.
"""

from collections.abc import Iterable

from quart import Quart, Response, request

from quart_upsun.http import credentials

METHODS = "GET, HEAD, POST, PUT, PATCH, DELETE"
TAKEN = "Authorization, X-API-Key, Content-Type, Idempotency-Key, If-Match, If-None-Match"
SHOWN = "ETag, Link, Location, Retry-After, Idempotency-Replayed, X-Request-ID"
PREFLIGHT_SECONDS = 600


def init_app(app: Quart, origins: Iterable[str]) -> None:
    """Let these origins ask the API; without any, no answer says a word about it."""
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
        # The answer itself is the one that Quart gives to OPTIONS.
        headers["Access-Control-Allow-Methods"] = METHODS
        headers["Access-Control-Allow-Headers"] = TAKEN
        headers["Access-Control-Max-Age"] = str(PREFLIGHT_SECONDS)
    else:
        headers["Access-Control-Expose-Headers"] = SHOWN
