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
from quart_upsun.current import current_toolkit
from quart_upsun.database import DatabaseUnavailableError, NotSanitizedError, SchemaBehindError
from quart_upsun.http import bodies, credentials
from quart_upsun.http.bodies import CONTENT_ENCODING_REFUSED
from quart_upsun.http.preconditions import PRECONDITION_FAILED
from quart_upsun.logging import get_logger
from quart_upsun.switches.state import MAINTENANCE, SwitchedOffError

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
    504: "The page took too long to load. Try again later.",
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
    if isinstance(error, SwitchedOffError):
        title, message = error.title, error.description or message
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
    """Return a 503. The schema gate logs its own errors, once for all requests.

    During maintenance the page says so, whatever the state of the database.
    """
    maintenance = current_toolkit().switches.active.get(MAINTENANCE)
    if maintenance is not None:
        return await http_error(SwitchedOffError(maintenance))
    if not isinstance(error, SchemaBehindError | NotSanitizedError):
        log.warning("request rejected", reason=str(error), cause=repr(error.__cause__))
    return await http_error(ServiceUnavailable(retry_after=RETRY_AFTER_SECONDS))


def log_exception(app: Quart, exception_info: Any) -> None:
    """Log an unhandled exception with the URL rule, and without any value from the request.

    Paths can contain valid tokens, and exception messages often quote the invalid value. Neither
    may reach the log.
    """
    incoming = _incoming()
    place: dict[str, str] = {}
    if incoming is not None:
        place["method"] = request.method if has_request_context() else "websocket"
        if incoming.url_rule is not None:
            place["route"] = incoming.url_rule.rule
    log.error("unhandled exception", **place, exception=_redacted_traceback(exception_info))


def submitted_values() -> list[str]:
    """Return the values of the current request or WebSocket, if there is one, the longest first."""
    incoming = _incoming()
    values = [] if incoming is None else bodies.submitted_values(incoming)
    found = {value for value in values if len(value) >= MIN_REDACTED_LENGTH}
    return sorted(found, key=len, reverse=True)  # one can contain another


def redact(text: str, values: list[str]) -> str:
    """Hide values in a text."""
    for value in values:
        text = text.replace(value, "[hidden]").replace(repr(value)[1:-1], "[hidden]")
    return text


def _incoming() -> BaseRequestWebsocket | None:
    if has_request_context():
        return request
    return websocket if has_websocket_context() else None


def _redacted_traceback(exception_info: Any) -> str:
    """Format the traceback and hide submitted values in it. Source code lines are kept."""
    values = submitted_values()
    parts = traceback.TracebackException(*exception_info).format()
    return "".join(part if part.startswith("  File ") else redact(part, values) for part in parts)
