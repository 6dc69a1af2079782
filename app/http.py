"""What comes in from the router, and what every answer carries."""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar
from urllib.parse import urlsplit

import structlog
from hypercorn.typing import ASGIFramework, ASGIReceiveCallable, ASGISendCallable, Scope
from quart import Quart, Response, current_app, request, session
from werkzeug.exceptions import Forbidden

from app.settings import Settings

View = TypeVar("View", bound=Callable[..., Awaitable[Any]])

PRIVATE = "private, no-store"

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
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


class Edge:
    """The outermost layer: a request id, the client's true address, and polite closing.

    Hypercorn's own proxy middleware believes headers that a client can send through the router.
    The router sets `X-Client-IP` and `X-Forwarded-Proto` itself, so these are believed, and only
    behind it.
    """

    def __init__(self, app: ASGIFramework, *, behind_router: bool, draining: asyncio.Event) -> None:
        self.app = app
        self.behind_router = behind_router
        self.draining = draining

    async def __call__(
        self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable
    ) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        request_id = secrets.token_hex(8)
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        if self.behind_router:
            _trust_router(scope)

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = [*message["headers"], (b"x-request-id", request_id.encode())]
                if self.draining.is_set():
                    # The client opens its next connection to whoever takes over.
                    headers.append((b"connection", b"close"))
                message = {**message, "headers": headers}
            await send(message)

        await self.app(scope, receive, send_with_headers)


def init_app(app: Quart, settings: Settings, draining: asyncio.Event) -> None:
    """Put the edge around the application and the rules onto every request and answer."""
    app.asgi_app = Edge(  # type: ignore[method-assign]
        app.asgi_app, behind_router=settings.platform is not None, draining=draining
    )
    origin = settings.platform.origin if settings.platform else None

    @app.before_request
    async def refuse_cross_site() -> None:
        if request.method not in {"GET", "HEAD", "OPTIONS", "TRACE"} and is_cross_site(
            request.headers.get("Sec-Fetch-Site"),
            request.headers.get("Origin"),
            origin or request.host_url.rstrip("/"),
        ):
            raise Forbidden("This request came from another site.")

    @app.after_request
    async def complete(response: Response) -> Response:
        for name, value in SECURITY_HEADERS.items():
            response.headers.setdefault(name, value)
        if request.endpoint != "static" or response.status_code >= 400:
            response.headers["Cache-Control"] = _cache_control(response)
        if response.location and response.location.startswith(request.host_url):
            # Werkzeug's redirects to the canonical path name the host that was asked for.
            response.location = "/" + response.location[len(request.host_url) :]
        return response


def is_cross_site(fetch_site: str | None, origin: str | None, own: str) -> bool:
    """Tell whether an unsafe request was caused by another site.

    Args:
        fetch_site: `Sec-Fetch-Site`, which every current browser sends and no page can set.
        origin: `Origin`, for browsers without it.
        own: scheme and host of this site.

    A client that sends neither is no browser, and has no cookies that another site could abuse.
    `same-site` is refused: the previews of all projects share one parent domain.
    """
    if fetch_site is not None:
        return fetch_site not in {"same-origin", "none"}
    return origin is not None and origin != own


def shared(seconds: int) -> Callable[[View], View]:
    """Let the router keep the page for `seconds`, and browsers not at all.

    Only as long as nobody is logged in; the page of somebody who is becomes private by itself.
    """

    def decorate(view: View) -> View:
        view.cache_control = f"public, max-age=0, s-maxage={seconds}"  # type: ignore[attr-defined]
        return view

    return decorate


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
    if rule == PRIVATE or response.status_code != 200:
        return PRIVATE
    # Who has one of our cookies sees another page than who has none, also in caches that,
    # unlike the platform's, would not step aside for a cookie.
    response.vary.add("Cookie")
    personal = any(name in request.cookies for name in own_cookies())
    if personal or session.accessed or session.modified or "Set-Cookie" in response.headers:
        return PRIVATE
    return rule


def _trust_router(scope: Any) -> None:
    for name, value in scope["headers"]:
        if name == b"x-client-ip":
            scope["client"] = (value.decode("latin1"), 0)
        elif name == b"x-forwarded-proto" and value in {b"http", b"https"}:
            secure = value == b"https"
            if scope["type"] == "websocket":
                scope["scheme"] = "wss" if secure else "ws"
            else:
                scope["scheme"] = value.decode()
