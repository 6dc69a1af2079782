"""Detection of API requests and of access tokens in request headers."""

from quart.wrappers.base import BaseRequestWebsocket
from werkzeug.datastructures import Headers

API_PREFIX = "/api/"


def is_api_request(incoming: BaseRequestWebsocket) -> bool:
    """Tell whether a request is for the API."""
    return incoming.path.startswith(API_PREFIX)


def has_token(incoming: BaseRequestWebsocket) -> bool:
    """Tell whether an API request must be authenticated by its access token alone.

    A page of another site cannot send either of the two token headers unless CORS allows it.
    `Basic` credentials do not count, because browsers add them on their own.
    """
    return is_api_request(incoming) and bool(presented_tokens(incoming.headers))


def presented_tokens(headers: Headers) -> set[str]:
    """Return the access tokens in `Authorization: Bearer` and `X-API-Key`, including empty ones.

    `X-API-Key` exists because Upsun removes `Authorization` in front of a preview with HTTP access
    control.
    """
    found = {value.strip() for value in headers.getlist("X-API-Key")}
    for value in headers.getlist("Authorization"):
        scheme, _, token = value.partition(" ")
        if scheme.lower() == "bearer":
            found.add(token.strip())
    return found
