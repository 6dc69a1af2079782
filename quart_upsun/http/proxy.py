"""The outermost layer: request id, the client's address as the router tells it, polite closing."""

import asyncio
import secrets
from contextlib import suppress
from typing import Any

import structlog
from hypercorn.typing import ASGIFramework, ASGIReceiveCallable, ASGISendCallable, Scope

# Two ways to say where a body ends. A request with both may be meant to smuggle another one past a
# proxy: https://www.rfc-editor.org/rfc/rfc9112#section-6.1
BODY_LENGTH_HEADERS = {b"content-length", b"transfer-encoding"}

LINGER_SECONDS = 2.0  # seconds that a body may go on arriving after its answer


class ProxyMiddleware:
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
        has_two_lengths = {name for name, _ in scope["headers"]} >= BODY_LENGTH_HEADERS
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
                    await asyncio.wait_for(arrived.wait(), LINGER_SECONDS)
            await send(message)

        await self.app(scope, receive_to_the_end, send_with_headers)


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
