"""What comes in from the router, and what every answer carries."""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Any, TypeVar
from urllib.parse import urlsplit

import structlog
from hypercorn.typing import ASGIFramework, ASGIReceiveCallable, ASGISendCallable, Scope
from quart import Quart, Response, current_app, request, session, websocket
from quart.wrappers.base import BaseRequestWebsocket
from werkzeug.exceptions import (
    BadRequest,
    Forbidden,
    RequestEntityTooLarge,
    UnsupportedMediaType,
)
from werkzeug.routing import IntegerConverter, Map

from app import bodies
from app.api import credentials
from app.database import LARGEST_ID
from app.settings import Settings

View = TypeVar("View", bound=Callable[..., Awaitable[Any]])

PRIVATE = "private, no-store"
IMMUTABLE = "public, max-age=31536000, immutable"

# Everything comes from our own origin; nothing is inline. Bootstrap draws its small icons from
# data: addresses in the style sheet.
SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:;"
        " font-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none';"
        " frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
# A year, for this host alone: what else lives under somebody's domain may still speak http, and is
# not ours to switch over.
STRICT_TRANSPORT = "max-age=31536000"

# The container and the rehearsal ask these by address.
HEALTH_PATHS = frozenset({"/livez", "/readyz"})

# Two ways to say where a body ends. A request with both may be meant to smuggle another one past a
# proxy: https://www.rfc-editor.org/rfc/rfc9112#section-6.1
FRAMING = {b"content-length", b"transfer-encoding"}

LINGER = 2.0  # seconds that a body may go on arriving after its answer


NOT_ENCODED = "The request body must not have a Content-Encoding."


class UnsupportedContentCoding(UnsupportedMediaType):
    """415 that names the one content coding for request bodies (RFC 9110, section 15.5.16)."""

    def get_headers(self, *args: Any, **options: Any) -> list[tuple[str, str]]:
        """Return the headers of the answer."""
        return [*super().get_headers(*args, **options), ("Accept-Encoding", "identity")]


class IdConverter(IntegerConverter):
    """`<id:name>` in a route: a number that no column can hold is a 404, and not a query."""

    def __init__(self, url_map: Map) -> None:
        super().__init__(url_map, max=LARGEST_ID)


class Edge:
    """The outermost layer: a request id, the client's true address, and polite closing.

    Hypercorn's own proxy middleware believes headers that a client can send through the router.
    The router sets `X-Client-IP` and `X-Forwarded-Proto` itself, so these are believed, and only
    behind it. Off the platform nothing a proxy says is believed; that it ends TLS is said by
    `PUBLIC_ORIGIN`.
    """

    def __init__(
        self,
        app: ASGIFramework,
        *,
        behind_router: bool,
        draining: asyncio.Event,
        behind_tls: bool = False,
    ) -> None:
        self.app = app
        self.behind_router = behind_router
        self.behind_tls = behind_tls
        self.draining = draining

    async def __call__(
        self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable
    ) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if self.behind_router:
            if scope["http_version"] not in {"1.0", "1.1"}:
                await _refuse_version(scope, send)
                return
            _trust_router(scope)
        elif self.behind_tls:
            _set_scheme(scope, is_secure=True)
        has_two_lengths = {name for name, _ in scope["headers"]} >= FRAMING
        request_id = secrets.token_hex(8)
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        arrived = asyncio.Event()
        status = 0

        async def receive_to_the_end() -> Any:
            message = await receive()
            if not message.get("more_body", False):  # the end of the body, or of the connection
                arrived.set()
            return message

        async def send_with_headers(message: Any) -> None:
            nonlocal status
            if message["type"] in {"http.response.start", "websocket.http.response.start"}:
                status = message["status"]
                headers = [*message["headers"], (b"x-request-id", request_id.encode())]
                # A draining process sends the client to whoever takes over. And who sent too much
                # or too slowly does not get to send more of it. Behind a body with two lengths, a
                # proxy may see another request than this server does.
                if self.draining.is_set() or status in {408, 413} or has_two_lengths:
                    headers.append((b"connection", b"close"))
                message = {**message, "headers": headers}
            elif (
                message["type"] == "http.response.body"
                and not message.get("more_body", False)
                and not arrived.is_set()
                and status != 408
            ):
                # A connection that is closed while something arrives is reset, and a client that
                # is still sending would not see the answer. All but its end is out by now.
                with suppress(TimeoutError):
                    await asyncio.wait_for(arrived.wait(), LINGER)
            await send(message)

        await self.app(scope, receive_to_the_end, send_with_headers)


def init_app(app: Quart, settings: Settings, draining: asyncio.Event) -> None:
    """Put the edge around the application and the rules onto every request and answer."""
    app.url_map.converters["id"] = IdConverter
    app.request_class = bodies.Request
    app.asgi_http_class = bodies.Connection
    app.asgi_app = Edge(  # type: ignore[method-assign]
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
        headers["Strict-Transport-Security"] = STRICT_TRANSPORT
    if settings.is_preview:
        headers["X-Robots-Tag"] = "noindex, nofollow"

    @app.before_request
    async def refuse() -> None:
        _refuse_other_hosts(request, hosts, below)
        limit = request.max_content_length
        if limit is not None and (request.content_length or 0) > limit:
            # Before the view does anything, also one that would not read the body.
            raise RequestEntityTooLarge
        if request.method in {"GET", "HEAD", "OPTIONS", "TRACE"}:
            return
        # Only a script of a site that is named can send a token from elsewhere. Where one is sent
        # nothing looks at the cookie, which is what other sites could abuse.
        has_token = credentials.carries_token(request)
        if not (has_token and request.headers.get("Origin") in other_origins):
            _refuse_other_sites(request, public)
        _refuse_encoded_body(request)

    @app.before_websocket
    async def refuse_handshake() -> None:
        # It is a GET, and other pages may cause it: nothing else keeps them from reading along.
        _refuse_other_hosts(websocket, hosts, below)
        _refuse_other_sites(websocket, public)

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
            response.headers["Cache-Control"] = _cache_control(response)
        if response.location and response.location.startswith(request.host_url):
            # Werkzeug's redirects to the canonical path name the host that was asked for.
            response.location = "/" + response.location[len(request.host_url) :]
        return response

    @app.after_websocket  # type: ignore[type-var]
    async def complete_refusal(response: Response | None) -> Response | None:
        if response is not None:
            add_missing(response)
            response.headers["Cache-Control"] = PRIVATE
        return response


def canonical_host(host: str) -> str:
    """Return a host in the one form in which two can be compared.

    Without the ports that addresses leave out, and without the dot that ends a name in full.
    """
    host = host.lower()
    name, _, port = host.rpartition(":")
    if not port.isdecimal():  # none was given; what follows the colon is part of an IPv6 address
        name, port = host, ""
    name = name.removesuffix(".")
    return name if port in {"", "80", "443"} else f"{name}:{port}"


def is_cross_site(
    fetch_site: str | None, origin: str | None, own: str, public: str | None = None
) -> bool:
    """Tell whether an unsafe request was caused by another site.

    Args:
        fetch_site: `Sec-Fetch-Site`, which every current browser sends and no page can set.
        origin: `Origin`, for browsers without it.
        own: scheme and host of this site, as the request has it.
        public: the same as browsers have it, where a proxy changes it on the way.

    A client that sends neither is no browser, and has no cookies that another site could abuse.
    `same-site` is refused: the previews of all projects share one parent domain.
    """
    if fetch_site is not None:
        return fetch_site not in {"same-origin", "none"}
    return origin is not None and origin not in {own, public}


def shared(seconds: int) -> Callable[[View], View]:
    """Let the router keep the page for `seconds`, and browsers not at all.

    Only as long as nobody is logged in; the page of somebody who is becomes private by itself.
    """

    def decorate(view: View) -> View:
        view.cache_control = f"public, max-age=0, s-maxage={seconds}"  # type: ignore[attr-defined]
        return view

    return decorate


def immutable(view: View) -> View:
    """Let everybody keep for ever what the view answers.

    For content that is named by its digest, and is the same for whoever asks.
    """
    view.cache_control = IMMUTABLE  # type: ignore[attr-defined]
    return view


def private(view: View) -> View:
    """Keep what the view answers out of every cache."""
    view.cache_control = PRIVATE  # type: ignore[attr-defined]
    return view


def local_target(target: str | None) -> str | None:
    """Return `target` if it is a path on this site; None for anything that could lead elsewhere."""
    if not target:
        return None
    # Browsers drop these characters before they read an address.
    target = "".join(character for character in target if character > " " and character != "\x7f")
    if not target.startswith("/") or target[1:2] in {"/", "\\"}:
        return None
    try:
        parts = urlsplit(target)
    except ValueError:
        return None
    return None if parts.scheme or parts.netloc else target


def own_cookies() -> Iterable[str]:
    """Return the names of the cookies that make an answer personal."""
    return (
        current_app.config["SESSION_COOKIE_NAME"],
        current_app.config["QUART_AUTH_COOKIE_NAME"],
    )


def _cache_control(response: Response) -> str:
    view = current_app.view_functions.get(request.endpoint or "")
    rule: str = getattr(view, "cache_control", PRIVATE)
    if rule == PRIVATE or response.status_code not in {200, 304}:
        return PRIVATE
    if rule == IMMUTABLE and "Set-Cookie" not in response.headers:
        return rule
    # Who has one of our cookies sees another page than who has none, also in caches that,
    # unlike the platform's, would not step aside for a cookie.
    response.vary.add("Cookie")
    personal = any(name in request.cookies for name in own_cookies())
    if personal or session.accessed or session.modified or "Set-Cookie" in response.headers:
        return PRIVATE
    return rule


def _refuse_other_hosts(
    incoming: BaseRequestWebsocket, hosts: frozenset[str], below: tuple[str, ...]
) -> None:
    if not hosts or incoming.path in HEALTH_PATHS:
        return
    host = canonical_host(incoming.host)
    if host not in hosts and not host.endswith(below):
        raise BadRequest("This host is none of the site's.")


def _refuse_other_sites(incoming: BaseRequestWebsocket, public: str | None) -> None:
    # The host has been looked at, and no page can choose the one that its browser sends. So this
    # also holds on a site with several hosts.
    scheme = {"ws": "http", "wss": "https"}.get(incoming.scheme, incoming.scheme)
    if is_cross_site(
        incoming.headers.get("Sec-Fetch-Site"),
        incoming.headers.get("Origin"),
        f"{scheme}://{incoming.host}",
        public,
    ):
        raise Forbidden("This request came from another site.")


def _refuse_encoded_body(incoming: BaseRequestWebsocket) -> None:
    """Refuse a compressed body, which would be read as it is, and taken for a form without fields.

    Raises:
        UnsupportedContentCoding: `Content-Encoding` names anything but `identity`.
    """
    lines = incoming.headers.getlist("Content-Encoding")
    codings = {each.strip().lower() for line in lines for each in line.split(",")}
    if codings - {"", "identity"}:
        raise UnsupportedContentCoding(NOT_ENCODED)


async def _refuse_version(scope: Any, send: Any) -> None:
    """Refuse HTTP/2, which the router does not speak to an application.

    Who gets a router to pass on an upgrade to it has a connection on which nobody replaces the
    headers that are believed here.
    """
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1002})
        return
    await send({"type": "http.response.start", "status": 505, "headers": []})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def _trust_router(scope: Any) -> None:
    for name, value in scope["headers"]:
        if name == b"x-client-ip":
            scope["client"] = (value.decode("latin1"), 0)
        elif name == b"x-forwarded-proto" and value in {b"http", b"https"}:
            _set_scheme(scope, is_secure=value == b"https")


def _set_scheme(scope: Any, *, is_secure: bool) -> None:
    scheme = "ws" if scope["type"] == "websocket" else "http"
    scope["scheme"] = f"{scheme}s" if is_secure else scheme
