"""Error pages: what happened in words for people, and nothing of the inside."""

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
    400: "The request could not be understood.",
    401: "Please log in to see this page.",
    403: "You are not allowed to do this.",
    404: "There is no page at this address.",
    405: "This address does not take this kind of request.",
    408: "The request took too long to arrive.",
    412: PRECONDITION_FAILED,
    413: "What was sent is too large.",
    415: CONTENT_ENCODING_REFUSED,
    429: "Too many requests. Please wait a moment and try again.",
    500: "Something went wrong on our side. The error has been logged.",
    503: "The site is not available at the moment. Please try again in a few seconds.",
}
MIN_REDACTED_LENGTH = (
    4  # characters of a value that is taken out of the log: fewer are in every word
)
RETRY_AFTER_SECONDS = 5  # seconds: longer than an ordinary deploy holds the schema back


def init_app(app: Quart) -> None:
    app.register_error_handler(HTTPException, http_error)
    app.register_error_handler(DatabaseUnavailableError, unavailable)
    app.log_exception = partial(log_exception, app)  # type: ignore[method-assign]


async def http_error(error: HTTPException) -> Response:
    """Answer with a page of the same status, or a problem, keeping headers such as `Allow`."""
    if has_request_context() and credentials.is_api_request(request):
        return with_headers(problems.problem_response(error), error)
    code = error.code or 500
    title = HTTPStatus(code).phrase
    message = MESSAGES.get(code, f"{title}.")
    if has_websocket_context():  # whose client shows no page
        return Response(message, code, content_type="text/plain; charset=utf-8")
    page: dict[str, object] = {"code": code, "title": title, "message": message}
    if code >= 500:
        page["login_bar"] = False  # it would not work now
    return with_headers(Response(await render_template("error.html", **page), code), error)


def with_headers(response: Response, error: HTTPException) -> Response:
    """Return the response with the headers that belong to the error."""
    for name, value in error.get_headers():
        if name.lower() not in {"content-type", "content-length"}:
            response.headers.add(name, value)
    return response


async def unavailable(error: DatabaseUnavailableError) -> Response:
    """Answer 503. The gate has logged its reason already, once for all requests."""
    if not isinstance(error, SchemaBehindError | NotSanitizedError):
        log.warning("request rejected", reason=str(error), cause=repr(error.__cause__))
    return await http_error(ServiceUnavailable(retry_after=RETRY_AFTER_SECONDS))


def log_exception(app: Quart, exception_info: Any) -> None:
    """Log what no handler took, by the route's rule and without what the client sent.

    A path may hold a token that still lets somebody in, and messages like to quote the value that
    was wrong, so both would carry into the log what is not for its readers.
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
    """Return the traceback without the values in its messages; its lines of code hold none."""
    hidden = sorted((value for value in set(values) if len(value) >= MIN_REDACTED_LENGTH), key=len)
    parts = []
    for part in traceback.TracebackException(*exception_info).format():
        if not part.startswith("  File "):
            for value in reversed(hidden):
                part = part.replace(value, "[hidden]").replace(repr(value)[1:-1], "[hidden]")
        parts.append(part)
    return "".join(parts)
