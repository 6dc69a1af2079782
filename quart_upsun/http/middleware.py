"""Puts the rules of this package onto every request and response."""

import asyncio

from quart import Quart, Response, request, websocket
from werkzeug.exceptions import RequestEntityTooLarge

from quart_upsun.http import bodies, credentials
from quart_upsun.http.bodies import refuse_encoded_body
from quart_upsun.http.caching import cache_control
from quart_upsun.http.converters import IdConverter
from quart_upsun.http.headers import SECURITY_HEADERS, STRICT_TRANSPORT_SECURITY
from quart_upsun.http.hosts import canonical_host, require_known_host, require_same_site
from quart_upsun.http.proxy import ProxyMiddleware
from quart_upsun.http.sessions import SessionInterface
from quart_upsun.policy import NO_STORE
from quart_upsun.settings import Settings


def init_app(app: Quart, settings: Settings, draining: asyncio.Event) -> None:
    """Put the edge around the application and the rules onto every request and answer."""
    app.url_map.converters["id"] = IdConverter
    app.request_class = bodies.Request
    app.asgi_http_class = bodies.Connection
    app.session_interface = SessionInterface()
    app.asgi_app = ProxyMiddleware(  # type: ignore[method-assign]
        app.asgi_app,
        behind_router=settings.platform is not None,
        draining=draining,
        behind_tls=settings.secure,
    )
    hosts = frozenset(map(canonical_host, settings.platform.hosts if settings.platform else ()))
    # A route may be for every host below one: https://*.example.com/.
    below = tuple(host[1:] for host in hosts if host.startswith("*."))
    other_origins = settings.allowed_origins
    # A proxy that is not the platform's may not pass on the host that was asked for.
    public = settings.public_origin or None if settings.platform is None else None
    headers = {**SECURITY_HEADERS}
    if settings.secure:
        headers["Strict-Transport-Security"] = STRICT_TRANSPORT_SECURITY
    if settings.is_preview:
        headers["X-Robots-Tag"] = "noindex, nofollow"

    @app.before_request
    async def refuse() -> None:
        require_known_host(request, hosts, below)
        limit = request.max_content_length
        if limit is not None and (request.content_length or 0) > limit:
            # Before the view does anything, also one that would not read the body.
            raise RequestEntityTooLarge
        if request.method in {"GET", "HEAD", "OPTIONS", "TRACE"}:
            return
        # Only a script of a site that is named can send a token from elsewhere. Where one is sent
        # nothing looks at the cookie, which is what other sites could abuse.
        has_token = credentials.has_token(request)
        if not (has_token and request.headers.get("Origin") in other_origins):
            require_same_site(request, public)
        refuse_encoded_body(request)

    @app.before_websocket
    async def refuse_handshake() -> None:
        # It is a GET, and other pages may cause it: nothing else keeps them from reading along.
        require_known_host(websocket, hosts, below)
        require_same_site(websocket, public)

    def add_missing(response: Response) -> None:
        # One look for all of them: `setdefault()` walks through what is there for each.
        there = {name.lower() for name, _ in response.headers}
        for name, value in headers.items():
            if name.lower() not in there:
                response.headers.add(name, value)

    @app.after_request
    async def complete(response: Response) -> Response:
        add_missing(response)
        if request.endpoint != "static" or response.status_code >= 400:
            response.headers["Cache-Control"] = cache_control(response)
        if response.location and response.location.startswith(request.host_url):
            # Werkzeug's redirects to the canonical path name the host that was asked for.
            response.location = "/" + response.location[len(request.host_url) :]
        return response

    @app.after_websocket  # type: ignore[type-var]
    async def complete_refusal(response: Response | None) -> Response | None:
        if response is not None:
            add_missing(response)
            response.headers["Cache-Control"] = NO_STORE
        return response
