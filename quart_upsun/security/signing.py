"""Signed, expiring tokens: for reset links in mails and for known devices.

Tokens are not stored, so they cannot leak from the database. For a single-use token, sign something
that changes when the token is used.
"""

from typing import Any

from itsdangerous import BadData, URLSafeTimedSerializer
from quart import current_app

HOUR_SECONDS = 3600
DAY_SECONDS = 24 * HOUR_SECONDS


def sign(purpose: str, content: Any) -> str:
    """Return a signed, URL-safe token.

    Args:
        purpose: what the token is for. It cannot be verified for another purpose.
        content: any JSON value. It is signed, but not encrypted.
    """
    return _serializer(purpose).dumps(content)


def verify(purpose: str, token: str, *, max_age: int) -> Any:
    """Verify a token and return its content. Return None if it is invalid or has expired.

    Args:
        purpose: the purpose that the token was signed for.
        token: the token, as received from the client.
        max_age: how long a token is valid, in seconds.
    """
    try:
        return _serializer(purpose).loads(token, max_age=max_age)
    except BadData:
        return None


def _serializer(purpose: str) -> URLSafeTimedSerializer:
    # itsdangerous signs with the last key and accepts all of them.
    keys = list(reversed(current_app.config["TOKEN_KEYS"]))
    return URLSafeTimedSerializer(keys, salt=purpose)
