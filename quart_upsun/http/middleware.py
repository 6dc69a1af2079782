"""Installs the middleware and the request hooks of this package."""

import asyncio
from collections.abc import Sequence

from quart import Quart, Response, websocket
from quart.globals import request_ctx
from werkzeug.exceptions import RequestEntityTooLarge

from quart_upsun.http import bodies, credentials
from quart_upsun.http.bodies import refuse_encoded_body
from quart_upsun.http.caching import cache_control
from quart_upsun.http.connection import Connection
from quart_upsun.http.converters import IdConverter
from quart_upsun.http.headers import SECURITY_HEADERS, STRICT_TRANSPORT_SECURITY
from quart_upsun.http.hosts import canonical_host, require_known_host, require_same_site
from quart_upsun.http.proxy import ProxyMiddleware
from quart_upsun.http.sessions import SessionInterface
from quart_upsun.measure import Observer
from quart_upsun.policy import NO_STORE
from quart_upsun.settings import Settings


def init_app(
    app: Quart, settings: Settings, draining: asyncio.Event, observers: Sequence[Observer]
) -> None:
    """Wrap the application in the proxy middleware, and add request and response hooks."""
    app.url_map.converters["id"] = IdConverter
    app.request_class = bodies.Request
    app.asgi_http_class = Connection
    app.session_interface = SessionInterface()
    app.asgi_app = ProxyMiddleware(  # type: ignore[method-assign]
        app.asgi_app,
        behind_router=settings.platform is not None,
        draining=draining,
        behind_tls=settings.secure,
        observers=observers,
        trusts_trace_headers=settings.trust_trace_headers,
    )
    hosts = frozenset(map(canonical_host, settings.platform.hosts if settings.platform else ()))
    # An Upsun route may have a wildcard host: https://*.example.com/.
    suffixes = tuple(host[1:] for host in hosts if host.startswith("*."))
    other_origins = settings.allowed_origins
    # A proxy other than the Upsun router may not pass the original Host header on.
    public = settings.public_origin or None if settings.platform is None else None
    headers = {**SECURITY_HEADERS}
    if settings.secure:
        headers["Strict-Transport-Security"] = STRICT_TRANSPORT_SECURITY
    if settings.is_preview:
        headers["X-Robots-Tag"] = "noindex, nofollow"

    @app.before_request
    async def check_request() -> None:
        request = request_ctx.request  # each use of Quart's proxy would look for it again
        require_known_host(request, hosts, suffixes)
        limit = request.max_content_length
        if limit is not None and (request.content_length or 0) > limit:
            # Checked here for views that do not read the body.
            raise RequestEntityTooLarge
        if request.method in {"GET", "HEAD", "OPTIONS", "TRACE"}:
            return
        # Cross-origin requests with a token are fine from origins that CORS allows: cookies are
        # ignored when a token is sent, so there is no cookie to abuse.
        has_token = credentials.has_token(request)
        if not (has_token and request.headers.get("Origin") in other_origins):
            require_same_site(request, public)
        refuse_encoded_body(request)

    @app.before_websocket
    async def check_handshake() -> None:
        # Pages of other sites can open a WebSocket with the user's cookies, and the same-origin
        # policy does not stop them.
        require_known_host(websocket, hosts, suffixes)
        require_same_site(websocket, public)

    def add_missing(response: Response) -> None:
        # Faster than `setdefault()`, which searches all headers each time.
        existing = {name.lower() for name, _ in response.headers}
        for name, value in headers.items():
            if name.lower() not in existing:
                response.headers.add(name, value)

    @app.after_request
    async def complete(response: Response) -> Response:
        request = request_ctx.request
        add_missing(response)
        if request.endpoint != "static" or response.status_code >= 400:
            response.headers["Cache-Control"] = cache_control(response)
        if response.location and response.location.startswith(request.host_url):
            # Werkzeug's redirects to the canonical path contain the client's Host header.
            response.location = "/" + response.location[len(request.host_url) :]
        return response

    @app.after_websocket  # type: ignore[type-var]
    async def complete_refusal(response: Response | None) -> Response | None:
        if response is not None:
            add_missing(response)
            response.headers["Cache-Control"] = NO_STORE
        return response
