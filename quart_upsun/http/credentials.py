"""Which requests are the API's, and which carry a token.

The rules of `quart_upsun.http` and the login ask this before any view.
"""

from quart.wrappers.base import BaseRequestWebsocket
from werkzeug.datastructures import Headers

API_PREFIX = "/api/"


def is_api_request(incoming: BaseRequestWebsocket) -> bool:
    """Tell whether a request is for the API."""
    return incoming.path.startswith(API_PREFIX)


def has_token(incoming: BaseRequestWebsocket) -> bool:
    """Tell whether a request is to be judged by the token it carries, and by nothing else.

    Neither of the two headers can be sent by the page of another site unless CORS lets it. `Basic`
    credentials, which a browser adds by itself, are no token.
    """
    return is_api_request(incoming) and bool(presented_tokens(incoming.headers))


def presented_tokens(headers: Headers) -> set[str]:
    """Return the tokens in `Authorization: Bearer` and `X-API-Key`; empty ones too.

    Two headers, because the platform takes `Authorization` away in front of a preview that is
    protected by a password.
    """
    found = {value.strip() for value in headers.getlist("X-API-Key")}
    for value in headers.getlist("Authorization"):
        scheme, _, token = value.partition(" ")
        if scheme.lower() == "bearer":
            found.add(token.strip())
    return found
