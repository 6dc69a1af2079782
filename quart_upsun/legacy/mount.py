"""Mount a WSGI application as a view of this application.

The mounted application is a view, so everything that guards the other views guards it too: the Host
and cross-site checks, body limits, security headers, error pages, request ids and the log. This
module adds what other views do not need: threads, a time limit, and the checks that views get from
their database session or their decorators. docs/decisions/mounting.md says why neither a2wsgi nor
Hypercorn's own WSGI middleware is used.
"""

import asyncio
import tempfile
import traceback
from collections.abc import Awaitable, Callable, Mapping
from types import MappingProxyType
from typing import IO, Any

from quart import Quart, Request, Response, current_app, request, session
from werkzeug.datastructures import Headers
from werkzeug.exceptions import GatewayTimeout, InternalServerError, ServiceUnavailable
from werkzeug.http import parse_cookie
from werkzeug.routing import PathConverter

from quart_upsun.current import current_toolkit
from quart_upsun.http.bodies import BodyLimit, iterate_body
from quart_upsun.http.hosts import require_same_site
from quart_upsun.identity import session_user
from quart_upsun.legacy.call import (
    Head,
    MountedApplicationError,
    StreamBody,
    WsgiCall,
    WsgiViolationError,
    format_frames,
)
from quart_upsun.legacy.environ import WsgiApplication, build_environ
from quart_upsun.legacy.login import MountedLogin
from quart_upsun.legacy.threads import DaemonThreads
from quart_upsun.logging import get_logger
from quart_upsun.policy import OWN_CACHE_CONTROL, declare, public
from quart_upsun.security.limits import Limit, rate_limit

log = get_logger(__name__)

THREADS = 8
TIME_LIMIT_SECONDS = 30.0
WAIT_SECONDS = 5.0  # for a free thread
RETRY_AFTER_SECONDS = 5
# Of requests that may change data: the mounted application's login form has no limit of its own.
DEFAULT_LIMIT = Limit("mounted", 60, 60)
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}
MAX_BODY_IN_MEMORY = 1024 * 1024  # bytes; larger bodies are stored in a temporary file
HOP_BY_HOP_HEADERS = {
    *("connection", "keep-alive", "proxy-authenticate", "proxy-connection", "te", "trailer"),
    *("transfer-encoding", "upgrade"),
}


class AnyPathConverter(PathConverter):
    """Matches every path, including an empty one and one with empty segments."""

    regex = r"[\s\S]*?"  # with line breaks, which the application may reject itself
    part_isolating = False


def mount_wsgi(
    app: Quart,
    application: WsgiApplication,
    path: str | None = None,
    *,
    threads: int = THREADS,
    time_limit_seconds: float = TIME_LIMIT_SECONDS,
    limit: Limit | None = DEFAULT_LIMIT,
    body_limit: BodyLimit | None = None,
    headers: Mapping[str, str] = MappingProxyType({}),
    requires_schema: bool = True,
    log_out: Callable[[], Awaitable[None] | None] | None = None,
) -> None:
    """Serve a WSGI application, such as one with Flask, beside this application.

        mount_wsgi(app, old_app, "/old")  # below a path
        mount_wsgi(app, old_app)  # all requests that no route of this application matches

    Call it in `create_app`. As the fallback, the routes of this application come first, including
    `/static/`.

    Args:
        app: the application, initialized by `QuartUpsun`.
        application: the WSGI application.
        path: where to mount it, such as `/old`. None makes it the fallback.
        threads: how many requests of a process it handles at the same time. Others wait up to 5
            seconds, and then get a 503.
        time_limit_seconds: how long to wait for the beginning of a response, or the next part of a
            stream. Then the client gets a 504. The thread stays occupied until the view returns.
        limit: the rate limit of requests that may change data, by client. None for no limit.
        body_limit: a larger limit for request bodies. Not for a fallback: set
            `app.config["BODY_LIMITS"]` for single paths.
        headers: response headers that replace those of this application, such as a
            `Content-Security-Policy` for inline scripts. The application's own headers win.
        requires_schema: whether to answer 503 while the database cannot serve this application's
            code. False if the mounted application does not use the database.
        log_out: logs the user out of this application, and may be a coroutine function. Called
            when the mounted one logs out.

    Raises:
        ValueError: the path is malformed, both applications have a cookie with the same name, or
            the fallback has a `body_limit`.
    """
    prefix = _prefix(path)
    own_cookies = _own_cookies(app)
    _require_different_cookies(application, own_cookies)
    mounted = MountedApplication(
        application,
        prefix,
        DaemonThreads(threads, f"mounted {prefix or '/'}"),
        time_limit_seconds=time_limit_seconds,
        headers=headers,
        requires_schema=requires_schema,
        own_cookies=own_cookies,
        log_out=log_out,
    )
    if body_limit is not None:
        if path is None:
            raise ValueError(
                "A fallback has no body_limit, because it has no path of its own. Set"
                ' app.config["BODY_LIMITS"] for the paths that take large bodies.'
            )
        app.config["BODY_LIMITS"][f"{prefix}/*"] = body_limit

    async def respond(**_: str) -> Response:
        return await mounted.respond()

    view: Callable[..., Awaitable[Response]] = respond
    if limit is not None:
        view = rate_limit(limit, when=_may_change_data)(view)
    view = declare(
        public(view),
        cache_control=OWN_CACHE_CONTROL,
        no_limit_reason="the mounted application limits them",
        no_audit_reason="the mounted application records its own events",
    )
    app.url_map.converters["any_path"] = AnyPathConverter
    endpoint = f"mounted{prefix.replace('/', '-').replace('.', '-')}"
    for rule in (f"{prefix}/", f"{prefix}/<any_path:path>"):
        app.add_url_rule(
            rule,
            endpoint,
            view,
            methods=METHODS,
            provide_automatic_options=False,
            merge_slashes=False,
        )


class MountedApplication:
    """A WSGI application with its threads. `mount_wsgi` documents the arguments."""

    def __init__(
        self,
        application: WsgiApplication,
        prefix: str,
        threads: DaemonThreads,
        *,
        time_limit_seconds: float,
        headers: Mapping[str, str],
        requires_schema: bool,
        own_cookies: frozenset[str],
        log_out: Callable[[], Awaitable[None] | None] | None,
    ) -> None:
        self._application = application
        self._prefix = prefix
        self._threads = threads
        self._time_limit_seconds = time_limit_seconds
        self._headers = headers
        self._requires_schema = requires_schema
        self._own_cookies = own_cookies
        self._log_out = log_out

    async def respond(self) -> Response:
        """Respond to the current request.

        Raises:
            HTTPException: the request is rejected, or the application failed before its response.
            DatabaseUnavailableError: the database cannot serve this application's code.
        """
        toolkit = current_toolkit()
        settings = toolkit.settings
        public_origin = None if settings.platform else settings.public_origin or None
        incoming: Request = request._get_current_object()  # type: ignore[attr-defined]
        if incoming.method not in SAFE_METHODS:
            # Checked again, because API requests with a token may come from other origins. The
            # mounted application knows no tokens, and may accept its own cookie.
            require_same_site(incoming, public_origin)
        if self._requires_schema and not toolkit.database.gate.is_open:
            await toolkit.database.gate.check()
        body, length = await _receive(incoming)
        login = self._login(incoming)
        try:
            environ = build_environ(
                incoming,
                body,
                length,
                prefix=self._prefix,
                public_origin=public_origin,
                own_cookies=self._own_cookies,
                login=login,
            )
            call = WsgiCall(self._application, environ, stall_seconds=self._time_limit_seconds)
            await self._submit(call)
        except BaseException:
            body.close()
            raise
        response = self._response(call, await self._wait_for_head(call))
        if login.is_logged_out and self._log_out is not None:
            ended = self._log_out()
            if ended is not None:
                await ended
        return response

    def _login(self, incoming: Request) -> MountedLogin:
        user = session_user()
        login = MountedLogin(str(user.id) if user else None, user.username if user else None)
        if current_app.config["SESSION_COOKIE_NAME"] in incoming.cookies:
            login.session = MappingProxyType(dict(session))
        return login

    async def _submit(self, call: WsgiCall) -> None:
        try:
            await self._threads.submit(call.run, wait_seconds=WAIT_SECONDS)
        except TimeoutError:
            log.error(
                "mounted application is busy",
                path=self._prefix or "/",
                busy_threads=self._threads.busy,
                threads=self._threads.count,
            )
            raise ServiceUnavailable(retry_after=RETRY_AFTER_SECONDS) from None

    async def _wait_for_head(self, call: WsgiCall) -> Head:
        try:
            async with asyncio.timeout(self._time_limit_seconds):
                return await call.head()
        except TimeoutError:
            self._log_timeout(call)
            call.abandon()
            raise GatewayTimeout from None
        except MountedApplicationError as error:
            if current_app.debug:
                raise (error.__cause__ or error) from None  # for the traceback page
            _log_failure(error)
            raise InternalServerError from None
        except asyncio.CancelledError:
            call.abandon()
            raise

    def _response(self, call: WsgiCall, head: Head) -> Response:
        response = Response(head.body, head.status)
        response.headers = self._response_headers(head)
        if not head.is_whole:
            response.response = StreamBody(call, self._stream(call, head.body))
            response.timeout = None  # the time limit applies to each part
        return response

    async def _stream(self, call: WsgiCall, first: bytes) -> Any:
        yield first
        try:
            async for chunk in call.chunks(timeout_seconds=self._time_limit_seconds):
                yield chunk
        except MountedApplicationError as error:
            _log_failure(error)
            # Ends the connection, so that the client does not take the part for the whole.
            raise StreamFailedError from None
        except TimeoutError:
            self._log_timeout(call)
            raise StreamFailedError from None

    def _response_headers(self, head: Head) -> Headers:
        headers = Headers()
        for name, value in head.headers:
            lower = name.lower()
            if lower in HOP_BY_HOP_HEADERS:
                continue
            if lower == "set-cookie" and self._own_cookies & set(parse_cookie(value)):
                log.error(
                    "mounted application sets a cookie of this application", path=self._prefix
                )
                continue
            headers.add(name, value)
        for name, value in self._headers.items():
            headers.setdefault(name, value)
        if head.is_whole and head.status not in {204, 304} and "Content-Length" not in headers:
            headers["Content-Length"] = str(len(head.body))
        return headers

    def _log_timeout(self, call: WsgiCall) -> None:
        log.error(
            "mounted application timed out",
            path=self._prefix or "/",
            busy_threads=self._threads.busy,
            threads=self._threads.count,
            stack=call.stack(),
        )


class StreamFailedError(asyncio.CancelledError):
    """The mounted application failed after its response had begun. It is logged already.

    Ends the response like a canceled request: Hypercorn closes the connection, and logs nothing.
    """


def _prefix(path: str | None) -> str:
    prefix = (path or "").removesuffix("/")
    if path is not None and (
        not prefix.startswith("/") or "//" in prefix or any(each in prefix for each in "<>?#% ")
    ):
        raise ValueError(
            f"{path!r} is not a path for a mounted application. Use, for example, /old, or leave it"
            " out to serve all requests that no route matches."
        )
    return prefix


def _own_cookies(app: Quart) -> frozenset[str]:
    """Return the names of all cookies of this application."""
    return frozenset(
        value
        for key, value in app.config.items()
        if key.endswith("_COOKIE_NAME") and isinstance(value, str)
    )


def _require_different_cookies(application: WsgiApplication, own_cookies: frozenset[str]) -> None:
    """Reject a Flask application with a cookie of the same name: each would discard the other's.

    Raises:
        ValueError: both have a cookie with the same name.
    """
    config: Mapping[str, Any] = getattr(application, "config", {})
    for key, value in config.items():
        if key.endswith("_COOKIE_NAME") and value in own_cookies:
            raise ValueError(
                f"Both applications have a cookie {value!r}. Set {key} of the mounted application"
                f" to another name, such as {f'old_{value}'!r}."
            )


def _may_change_data() -> bool:
    return request.method not in SAFE_METHODS


async def _receive(incoming: Request) -> tuple[IO[bytes], int]:
    """Receive the whole request body, so that a slow client does not occupy a thread.

    Returns:
        The body as a file, and its size in bytes.

    Raises:
        RequestEntityTooLarge: the body exceeds the limit of its path.
        RequestTimeout: the body arrives too slowly.
    """
    body = tempfile.SpooledTemporaryFile(max_size=MAX_BODY_IN_MEMORY)  # noqa: SIM115 the thread closes it
    size = 0
    try:
        async for chunk in iterate_body(incoming):
            size += len(chunk)
            if size > MAX_BODY_IN_MEMORY:
                await asyncio.to_thread(body.write, chunk)
            else:
                body.write(chunk)
        body.seek(0)
    except BaseException:
        body.close()
        raise
    return body, size


def _log_failure(error: MountedApplicationError) -> None:
    """Log where the application failed.

    The message of its exception is left out, because it may quote input that the application has
    read, and that this application does not know.
    """
    cause = error.__cause__
    if cause is None:
        return  # abandoned
    log.error(
        "mounted application failed",
        error=type(cause).__name__,
        reason=str(cause) if isinstance(cause, WsgiViolationError) else None,
        stack=format_frames(traceback.extract_tb(cause.__traceback__)),
    )
