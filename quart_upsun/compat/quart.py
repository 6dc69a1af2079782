"""Quart 0.22, and Flask beneath it."""

from flask.templating import _default_template_ctx_processor
from quart.asgi import ASGIHTTPConnection
from quart.formparser import FormDataParser
from quart.globals import _cv_request
from quart.wrappers.base import BaseRequestWebsocket
from quart.wrappers.request import Body
from werkzeug.datastructures import MultiDict

# Every blueprint brings it along, beside Quart's own of the same content. It is synchronous, which
# costs each page a thread, so `web.templating` takes it out.
FLASK_CONTEXT_PROCESSOR = _default_template_ctx_processor

# Methods without a public counterpart that `http.bodies` overrides, and their parameters: a request
# gets its limit before its body arrives, and fields are counted before they are parsed.
OVERRIDDEN = {
    ASGIHTTPConnection._create_request_from_scope: ("self", "send"),
    FormDataParser._parse_urlencoded: ("self", "body", "mimetype", "content_length", "options"),
}


def current_root_path() -> str | None:
    """Return the root path of the current request; None without one.

    Directly from the context: the proxies of Quart take ten times as long, which a template that
    asks for a hundred URLs would notice.
    """
    context = _cv_request.get(None)
    return None if context is None else context.request.root_path


def size_limit(body: Body) -> int | None:
    """Return how many bytes a body may have. Quart applies it only to what is buffered."""
    return body._max_content_length


def failure(body: Body) -> Exception | None:
    """Return what reading a body raises: the ASGI side has no other way to reach the view."""
    return body._must_raise


def fail(body: Body, error: Exception) -> None:
    """Let reading a body raise an error, and drop what has arrived."""
    body._must_raise = error
    body.clear()
    body.set_complete()


def buffered(body: Body) -> int:
    """Return how many bytes of a body wait for the view, so that no more of it is received."""
    return len(body._data)


def parsed_form(incoming: BaseRequestWebsocket) -> MultiDict[str, str] | None:
    """Return the form if a view has read it: `await request.form` would wait for the body."""
    return getattr(incoming, "_form", None)
