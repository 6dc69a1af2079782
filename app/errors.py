"""Error pages: what happened in words for people, and nothing of the inside."""

from http import HTTPStatus

from quart import Quart, render_template
from quart.wrappers import Response
from werkzeug.exceptions import HTTPException, ServiceUnavailable

from app import logs
from app.database import SchemaBehind, Unavailable

log = logs.get(__name__)

MESSAGES = {
    400: "The request could not be understood.",
    401: "Please log in to see this page.",
    403: "You are not allowed to do this.",
    404: "There is no page at this address.",
    405: "This address does not take this kind of request.",
    408: "The request took too long to arrive.",
    413: "What was sent is too large.",
    429: "Too many requests. Please wait a moment and try again.",
    500: "Something went wrong on our side. The error has been logged.",
    503: "The site is not available at the moment. Please try again in a few seconds.",
}
RETRY_AFTER = 5  # seconds: longer than an ordinary deploy holds the schema back


def init_app(app: Quart) -> None:
    app.register_error_handler(HTTPException, http_error)
    app.register_error_handler(Unavailable, unavailable)


async def http_error(error: HTTPException) -> Response:
    """Answer with a page of the same status, keeping headers such as `Allow`."""
    code = error.code or 500
    title = HTTPStatus(code).phrase
    message = MESSAGES.get(code, f"{title}.")
    page: dict[str, object] = {"code": code, "title": title, "message": message}
    if code >= 500:
        page["login_bar"] = False  # it would not work now
    response = Response(await render_template("error.html", **page), code)
    for name, value in error.get_headers():
        if name.lower() not in {"content-type", "content-length"}:
            response.headers.add(name, value)
    return response


async def unavailable(error: Unavailable) -> Response:
    """Answer 503. The schema gate has logged its reason already, once for all requests."""
    if not isinstance(error, SchemaBehind):
        log.warning("request refused", reason=str(error), cause=repr(error.__cause__))
    return await http_error(ServiceUnavailable(retry_after=RETRY_AFTER))
