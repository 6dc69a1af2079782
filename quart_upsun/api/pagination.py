"""Pages of a list, with the URL of the next page in the body and in a `Link` header (RFC 8288)."""

from collections.abc import Mapping
from urllib.parse import urlencode

from pydantic import BaseModel
from quart import Response, request

from quart_upsun.api.validation import json_response

CURSORS = frozenset({"before", "after"})
NEXT_LINK_HEADER = {"Link": "The URL of the next page (RFC 8288)"}


def next_page_url(cursor: Mapping[str, str]) -> str | None:
    """Return the URL of the next page: the current URL with another cursor.

    Args:
        cursor: `before` or `after` with its value; empty on the last page.
    """
    if not cursor:
        return None
    kept = {name: value for name, value in request.args.items() if name not in CURSORS}
    return f"{request.path}?{urlencode({**kept, **cursor})}"


def page_response(page: BaseModel, next_url: str | None) -> Response:
    """Return a page as a JSON response that links to the next one."""
    return json_response(page, headers={"Link": f'<{next_url}>; rel="next"'} if next_url else {})
