"""The outermost ASGI middleware: request ids, client addresses, connection handling."""

import asyncio
import secrets
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import structlog
from hypercorn.typing import ASGIFramework, ASGIReceiveCallable, ASGISendCallable, Scope

from quart_upsun.database.usage import current_use
from quart_upsun.measure import (
    Observer,
    ParentSpan,
    RequestMeasure,
    current_request,
    end_measure,
    known_method,
    parse_request_id,
    parse_traceparent,
)

# A request with both headers may be an attempt at request smuggling:
# https://www.rfc-editor.org/rfc/rfc9112#section-6.1
BODY_LENGTH_HEADERS = {b"content-length", b"transfer-encoding"}

LINGER_SECONDS = 2.0  # wait this long for the rest of a request body before the response ends


class ProxyMiddleware:
    """ASGI middleware for request ids, measures, client addresses and `Connection: close`.

    Hypercorn's own proxy middleware trusts headers that a client can send through the Upsun router.
    This one trusts only `X-Client-IP` and `X-Forwarded-Proto`, which the router always sets, and
    only behind the router. Elsewhere no header is trusted, and `PUBLIC_ORIGIN` tells whether a
    proxy terminates TLS.

    Args:
        app: the ASGI application.
        behind_router: whether the application runs behind the Upsun router.
        draining: set during graceful shutdown. Connections then close after their response.
        behind_tls: whether another proxy terminates TLS.
        observers: they get the measure of each request over HTTP at its end.
        trusts_trace_headers: whether `X-Request-ID` and `traceparent` come from a trusted proxy.
    """

    def __init__(
        self,
        app: ASGIFramework,
        *,
        behind_router: bool,
        draining: asyncio.Event,
        behind_tls: bool = False,
        observers: Sequence[Observer] = (),
        trusts_trace_headers: bool = False,
    ) -> None:
        self.app = app
        self.behind_router = behind_router
        self.behind_tls = behind_tls
        self.draining = draining
        self.observers = observers
        self.trusts_trace_headers = trusts_trace_headers

    async def __call__(
        self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable
    ) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if self.behind_router:
            if scope["http_version"] not in {"1.0", "1.1"}:
                await _refuse_version(scope, send)
                if (refused := self._measure(scope, *_new_ids())) is not None:
                    refused.status = 505
                    end_measure(refused, self.observers)
                return
            _trust_router(scope)
        elif self.behind_tls:
            _set_scheme(scope, is_secure=True)
        has_two_lengths = {name for name, _ in scope["headers"]} >= BODY_LENGTH_HEADERS
        request_id, trace_id = _new_ids()
        parent = None
        if self.trusts_trace_headers:
            request_id, parent = _trace_headers(scope, request_id)
            trace_id = parent.trace_id if parent else trace_id
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id, trace_id=trace_id)
        measure = self._measure(scope, request_id, trace_id, parent)
        request_ended = asyncio.Event()
        status = 0

        async def receive_and_watch() -> Any:
            message = await receive()
            if not message.get("more_body", False):  # end of the body, or a disconnect
                request_ended.set()
            return message

        async def send_with_headers(message: Any) -> None:
            nonlocal status
            if measure is not None:
                measure.response_bytes += len(message.get("body", b""))
            if message["type"] in {"http.response.start", "websocket.http.response.start"}:
                status = message["status"]
                if measure is not None:
                    measure.status = status
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
                # sending would not see the response. Only its end is held back here.
                message["more_body"] = True
                await send(message)
                message = {"type": "http.response.body", "body": b"", "more_body": False}
                with suppress(TimeoutError):
                    await asyncio.wait_for(request_ended.wait(), LINGER_SECONDS)
            await send(message)

        if measure is None:
            await self.app(scope, receive_and_watch, send_with_headers)
            return
        current_request.set(measure)
        current_use.set(measure.database)
        try:
            await self.app(scope, receive_and_watch, send_with_headers)
        except Exception:
            if measure.status is None:
                measure.status = 500  # the server's response
            raise
        finally:
            end_measure(measure, self.observers)

    def _measure(
        self, scope: Any, request_id: str, trace_id: str, parent: ParentSpan | None = None
    ) -> RequestMeasure | None:
        """Begin to measure a request; None for a WebSocket, or if nobody observes requests."""
        if not self.observers or scope["type"] != "http":
            return None
        return RequestMeasure(known_method(scope["method"]), request_id, trace_id, parent)


def _new_ids() -> tuple[str, str]:
    """Return a random request id and trace id."""
    return secrets.token_hex(8), secrets.token_hex(16)


def _trace_headers(scope: Any, request_id: str) -> tuple[str, ParentSpan | None]:
    """Return the proxy's request id, or the given one, and the span of the proxy."""
    parent = None
    for name, value in scope["headers"]:
        if name == b"traceparent":
            parent = parse_traceparent(value)
        elif name == b"x-request-id":
            request_id = parse_request_id(value) or request_id
    return request_id, parent


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
