"""Browsers that a user trusts: for 30 days, logins with them need no code.

The signed cookie contains the user and the session version. That changes with a new password, with
"Log out everywhere", and when a second factor is turned on, turned off or removed by an
administrator, so that earlier cookies are no longer valid.
"""

from quart import current_app, request
from quart.typing import ResponseTypes

from app.user.models import User
from quart_upsun.http.cookies import set_cookie
from quart_upsun.security import signing

DAYS = 30
LIFETIME_SECONDS = DAYS * signing.DAY_SECONDS


def is_trusted(user: User) -> bool:
    """Return whether `user` has chosen to trust this browser."""
    cookie = request.cookies.get(current_app.config["TRUSTED_BROWSER_COOKIE_NAME"], "")
    content = signing.verify("trusted browser", cookie, max_age=LIFETIME_SECONDS)
    return bool(content == [user.id, user.session_version])


def trust(response: ResponseTypes, user: User) -> None:
    """Set the cookie that makes this browser trusted by `user`."""
    set_cookie(
        response,
        current_app.config["TRUSTED_BROWSER_COOKIE_NAME"],
        signing.sign("trusted browser", [user.id, user.session_version]),
        max_age=LIFETIME_SECONDS,
    )
