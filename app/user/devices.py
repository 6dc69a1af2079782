"""Device cookies, which identify browsers that a user has logged in with before.

Login attempts are rate limited per account. Known devices have a limit of their own, so that an
attacker cannot lock out the owner.
https://owasp.org/www-community/Slow_Down_Online_Guessing_Attacks_with_Device_Cookies
"""

import secrets

from quart import current_app, request
from quart.typing import ResponseTypes

from app.user.models import User
from quart_upsun.http.cookies import set_cookie
from quart_upsun.security import signing

LIFETIME_SECONDS = 365 * signing.DAY_SECONDS


def known_device(user: User) -> str | None:
    """Return the identifier of this browser if `user` has logged in with it before.

    Only logins since the last password change count: someone who knew the previous password is not
    trusted.
    """
    cookie = request.cookies.get(current_app.config["DEVICE_COOKIE_NAME"], "")
    content = signing.verify("device", cookie, max_age=LIFETIME_SECONDS)
    if not content or content[:2] != [user.id, user.session_version]:
        return None
    return f"device {content[2]}"


def remember_device(response: ResponseTypes, user: User) -> None:
    """Set the device cookie of `user`, unless the browser has it already."""
    if known_device(user):
        return
    set_cookie(
        response,
        current_app.config["DEVICE_COOKIE_NAME"],
        signing.sign("device", [user.id, user.session_version, secrets.token_hex(8)]),
        max_age=LIFETIME_SECONDS,
    )
