"""The outermost ASGI middleware: request ids, client addresses, connection handling."""

import asyncio
import secrets
from contextlib import suppress
from typing import Any

import structlog
from hypercorn.typing import ASGIFramework, ASGIReceiveCallable, ASGISendCallable, Scope

# A request with both headers may be an attempt at request smuggling:
# https://www.rfc-editor.org/rfc/rfc9112#section-6.1
BODY_LENGTH_HEADERS = {b"content-length", b"transfer-encoding"}

LINGER_SECONDS = 2.0  # wait this long for the rest of a request body before the response ends


class ProxyMiddleware:
    """ASGI middleware for request ids, client addresses and `Connection: close`.

    Hypercorn's own proxy middleware trusts headers that a client can send through the Upsun router.
    This one trusts only `X-Client-IP` and `X-Forwarded-Proto`, which the router always sets, and
    only behind the router. Elsewhere no header is trusted, and `PUBLIC_ORIGIN` tells whether a
    proxy terminates TLS.

    Args:
        app: the ASGI application.
        behind_router: whether the application runs behind the Upsun router.
        draining: set during graceful shutdown. Connections then close after their response.
        behind_tls: whether another proxy terminates TLS.
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
        has_two_lengths = {name for name, _ in scope["headers"]} >= BODY_LENGTH_HEADERS
        request_id = secrets.token_hex(8)
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        request_ended = asyncio.Event()
        status = 0

        async def receive_and_watch() -> Any:
            message = await receive()
            if not message.get("more_body", False):  # end of the body, or a disconnect
                request_ended.set()
            return message

        async def send_with_headers(message: Any) -> None:
            nonlocal status
            if message["type"] in {"http.response.start", "websocket.http.response.start"}:
                status = message["status"]
                headers = [*message["headers"], (b"x-request-id", request_id.encode())]
                # While draining, the client must reconnect to another process. After a 408 or 413
                # the rest of the body must not be read. After an ambiguous body length, a proxy may
                # see another request boundary than this server.
                if self.draining.is_set() or status in {408, 413} or has_two_lengths:
                    headers.append((b"connection", b"close"))
                message = {**message, "headers": headers}
            elif (
                message["type"] == "http.response.body"
                and not message.get("more_body", False)
                and not request_ended.is_set()
                and status != 408
            ):
                # Closing a connection with unread data resets it, and a client that is still
                # sending would not see the response. Only its last part is held back here.
                with suppress(TimeoutError):
                    await asyncio.wait_for(request_ended.wait(), LINGER_SECONDS)
            await send(message)

        await self.app(scope, receive_and_watch, send_with_headers)


async def _refuse_version(scope: Any, send: Any) -> None:
    """Reject HTTP/2, which the router never uses towards an application.

    A client that gets an HTTP/2 upgrade through the router could send the trusted headers itself.
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
