"""Error pages and exception logging, without internal details or values from the request."""

import traceback
from functools import partial
from http import HTTPStatus
from typing import Any

from quart import (
    Quart,
    has_request_context,
    has_websocket_context,
    render_template,
    request,
    websocket,
)
from quart.wrappers import Response
from quart.wrappers.base import BaseRequestWebsocket
from werkzeug.exceptions import HTTPException, ServiceUnavailable

from quart_upsun.api import problems
from quart_upsun.database import DatabaseUnavailableError, NotSanitizedError, SchemaBehindError
from quart_upsun.http import bodies, credentials
from quart_upsun.http.bodies import CONTENT_ENCODING_REFUSED
from quart_upsun.http.preconditions import PRECONDITION_FAILED
from quart_upsun.logging import get_logger

log = get_logger(__name__)

MESSAGES = {
    400: "The request is malformed.",
    401: "Log in to continue.",
    403: "You do not have permission to do this.",
    404: "This page does not exist. Check the URL for typos.",
    405: "This URL does not support the method of the request.",
    408: "The request timed out. Try again.",
    412: PRECONDITION_FAILED,
    413: "The request is too large.",
    415: CONTENT_ENCODING_REFUSED,
    429: "Too many requests. Wait a moment and try again.",
    500: "An unexpected error occurred. It has been logged. Try again later.",
    503: "The site is temporarily unavailable. Try again in a few seconds.",
}
MIN_REDACTED_LENGTH = 4  # characters; shorter values occur in ordinary words
RETRY_AFTER_SECONDS = 5  # longer than a usual deploy keeps the schema behind the code


def init_app(app: Quart) -> None:
    """Register the error handlers and the exception logger."""
    app.register_error_handler(HTTPException, http_error)
    app.register_error_handler(DatabaseUnavailableError, unavailable)
    app.log_exception = partial(log_exception, app)  # type: ignore[method-assign]


async def http_error(error: HTTPException) -> Response:
    """Return an error page, or a problem for API requests, with headers such as `Allow`."""
    if has_request_context() and credentials.is_api_request(request):
        return with_headers(problems.problem_response(error), error)
    code = error.code or 500
    title = HTTPStatus(code).phrase
    message = MESSAGES.get(code, f"{title}.")
    if has_websocket_context():  # WebSocket clients do not render HTML
        return Response(message, code, content_type="text/plain; charset=utf-8")
    page: dict[str, object] = {"code": code, "title": title, "message": message}
    if code >= 500:
        page["login_bar"] = False  # logging in would probably fail, too
    return with_headers(Response(await render_template("error.html", **page), code), error)


def with_headers(response: Response, error: HTTPException) -> Response:
    """Add the headers of the exception to the response."""
    for name, value in error.get_headers():
        if name.lower() not in {"content-type", "content-length"}:
            response.headers.add(name, value)
    return response


async def unavailable(error: DatabaseUnavailableError) -> Response:
    """Return a 503. The schema gate logs its own errors, once for all requests."""
    if not isinstance(error, SchemaBehindError | NotSanitizedError):
        log.warning("request rejected", reason=str(error), cause=repr(error.__cause__))
    return await http_error(ServiceUnavailable(retry_after=RETRY_AFTER_SECONDS))


def log_exception(app: Quart, exception_info: Any) -> None:
    """Log an unhandled exception with the URL rule, and without any value from the request.

    Paths can contain valid tokens, and exception messages often quote the invalid value. Neither
    may reach the log.
    """
    incoming: BaseRequestWebsocket | None = None
    place: dict[str, str] = {}
    if has_request_context():
        incoming, place = request, {"method": request.method}
    elif has_websocket_context():
        incoming, place = websocket, {"method": "websocket"}
    if incoming is not None and incoming.url_rule is not None:
        place["route"] = incoming.url_rule.rule
    sent = bodies.submitted_values(incoming) if incoming is not None else []
    log.error("unhandled exception", **place, exception=_redacted_traceback(sent, exception_info))


def _redacted_traceback(values: list[str], exception_info: Any) -> str:
    """Format the traceback and replace the values in it. Source code lines are kept."""
    redacted = sorted(
        (value for value in set(values) if len(value) >= MIN_REDACTED_LENGTH), key=len
    )
    parts = []
    for part in traceback.TracebackException(*exception_info).format():
        if not part.startswith("  File "):
            for value in reversed(redacted):
                part = part.replace(value, "[hidden]").replace(repr(value)[1:-1], "[hidden]")
        parts.append(part)
    return "".join(parts)
