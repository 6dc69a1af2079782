"""Private APIs of Quart 0.22 and Flask."""

from flask.templating import _default_template_ctx_processor
from quart import Quart, Response
from quart.asgi import ASGIHTTPConnection, _handle_exception
from quart.formparser import FormDataParser
from quart.globals import _cv_request
from quart.wrappers.base import BaseRequestWebsocket
from quart.wrappers.request import Body
from werkzeug.datastructures import MultiDict

# Every blueprint adds it beside Quart's own, which does the same. It is synchronous, so each page
# would need a thread. `web.templating` removes it.
FLASK_CONTEXT_PROCESSOR = _default_template_ctx_processor

# Private methods that `http.bodies` and `http.connection` override, and their parameters. A request
# gets its limit before its body arrives, form fields are counted before they are parsed, and a body
# is sent as one message.
OVERRIDDEN = {
    ASGIHTTPConnection._create_request_from_scope: ("self", "send"),
    ASGIHTTPConnection._send_response: ("self", "send", "response"),
    FormDataParser._parse_urlencoded: ("self", "body", "mimetype", "content_length", "options"),
}


def current_root_path() -> str | None:
    """Return the root path of the current request; None without one.

    Directly from the context: the proxies of Quart take ten times as long, which a template that
    asks for a hundred URLs would notice.
    """
    context = _cv_request.get(None)
    return None if context is None else context.request.root_path


def has_read_flashes() -> bool:
    """Return whether the flashed messages of the current request were taken from its session."""
    context = _cv_request.get(None)
    return context is not None and context.flashes is not None


async def handle_unexpected_error(app: Quart, error: Exception) -> Response:
    """Return a page with the traceback in debug mode, otherwise raise the error again."""
    return await _handle_exception(app, error)


def size_limit(body: Body) -> int | None:
    """Return the size limit of a body, in bytes. Quart applies it to buffered bytes only."""
    return body._max_content_length


def failure(body: Body) -> Exception | None:
    """Return the exception that reading a body will raise."""
    return body._must_raise


def fail(body: Body, error: Exception) -> None:
    """Let reading a body raise an error, and discard its data."""
    body._must_raise = error
    body.clear()
    body.set_complete()


def buffered(body: Body) -> int:
    """Return the number of bytes of a body that wait for the view."""
    return len(body._data)


def parsed_form(incoming: BaseRequestWebsocket) -> MultiDict[str, str] | None:
    """Return the form if a view has read it, without waiting for the body."""
    return getattr(incoming, "_form", None)
