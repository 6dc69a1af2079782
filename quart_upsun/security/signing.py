"""What goes out signed and comes back: links in mails, the mark of a known device.

Nothing is stored, so nothing can be stolen from the database. That a link works once only is its
purpose's to say: it holds something that changes with its use.
"""

from typing import Any

from itsdangerous import BadData, URLSafeTimedSerializer
from quart import current_app

HOUR_SECONDS = 3600
DAY_SECONDS = 24 * HOUR_SECONDS


def sign(purpose: str, content: Any) -> str:
    """Return a token of this content, fit for a URL and worth nothing for another purpose."""
    return _serializer(purpose).dumps(content)


def verify(purpose: str, token: str, *, max_age: int) -> Any:
    """Return what was signed here in the last `max_age` seconds; None for anything else."""
    try:
        return _serializer(purpose).loads(token, max_age=max_age)
    except BadData:
        return None


def _serializer(purpose: str) -> URLSafeTimedSerializer:
    # The library signs with the last key and accepts all.
    keys = list(reversed(current_app.config["TOKEN_KEYS"]))
    return URLSafeTimedSerializer(keys, salt=purpose)
