"""Which requests are the API's, and which carry a token.

The rules of `quart_upsun.http` and the login ask this before any view.
"""

from quart.wrappers.base import BaseRequestWebsocket
from werkzeug.datastructures import Headers

PREFIX = "/api/"


def of_api(incoming: BaseRequestWebsocket) -> bool:
    """Tell whether a request is for the API."""
    return incoming.path.startswith(PREFIX)


def carries_token(incoming: BaseRequestWebsocket) -> bool:
    """Tell whether a request is to be judged by the token it carries, and by nothing else.

    Neither of the two headers can be sent by the page of another site unless CORS lets it. `Basic`
    credentials, which a browser adds by itself, are no token.
    """
    return of_api(incoming) and bool(presented(incoming.headers))


def presented(headers: Headers) -> set[str]:
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
