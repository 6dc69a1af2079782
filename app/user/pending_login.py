"""The end of a login: at once, or after a second factor.

Every first step, such as the password, ends in `finish_first_step`. If the user has a second
factor, the login is pending: a signed cookie names the user for ten minutes, and nothing but the
pages of the factors accepts it.
"""

from dataclasses import dataclass

from quart import current_app, flash, redirect, request, url_for
from quart.typing import ResponseTypes

from app.extensions import database, site
from app.site import SecondFactor
from app.user import accounts, devices
from app.user.login import log_in
from app.user.models import User
from quart_upsun.http.cookies import delete_cookie, set_cookie
from quart_upsun.security import signing

LIFETIME_SECONDS = 600
PURPOSE = "pending-login"


@dataclass(frozen=True)
class PendingLogin:
    """A login that waits for its second factor."""

    user: User
    remember: bool
    """Whether the login is to persist after the browser is closed."""
    target: str | None
    """The path to redirect to after the login."""
    factors: tuple[SecondFactor, ...]
    """The enabled factors of the user."""

    def other_factors(self, name: str) -> list[SecondFactor]:
        """Return the factors that the user can choose instead of the one with this name."""
        return [factor for factor in self.factors if factor.name != name]


async def finish_first_step(
    user: User, *, remember: bool, target: str | None, is_second_factor_done: bool = False
) -> ResponseTypes:
    """Log in, or redirect to the page of the user's second factor.

    Args:
        user: the active user, who has passed the first step.
        remember: whether the login persists after the browser is closed.
        target: the path to redirect to after the login; None for the default. It must be safe: see
            `safe_redirect_target`.
        is_second_factor_done: whether the first step was two in one, as a passkey that verifies its
            user.

    Raises:
        SessionEndedError: all sessions of the user were ended in the meantime.
    """
    factors: tuple[SecondFactor, ...] = ()
    if not is_second_factor_done and not site.trusts_browser(user):
        factors = await enabled_factors(user.id)
    if not factors:
        return await complete(PendingLogin(user, remember, target, ()))
    response = redirect(url_for(factors[0].endpoint), 303)
    set_cookie(
        response,
        current_app.config["PENDING_LOGIN_COOKIE_NAME"],
        signing.sign(PURPOSE, [user.id, user.session_version, remember, target]),
        max_age=LIFETIME_SECONDS,
    )
    return response


async def get() -> PendingLogin | None:
    """Return the pending login of this browser; None if there is none, or it has expired.

    A new password, or the end of all sessions, ends it as well.
    """
    cookie = request.cookies.get(current_app.config["PENDING_LOGIN_COOKIE_NAME"], "")
    content = signing.verify(PURPOSE, cookie, max_age=LIFETIME_SECONDS)
    if not content:
        return None
    user_id, version, remember, target = content
    async with database.read(exact=True) as session:
        user = await accounts.get_user_by_version(session, user_id, version)
    if user is None:
        return None
    return PendingLogin(user, remember, target, await enabled_factors(user_id))


async def complete(pending: PendingLogin) -> ResponseTypes:
    """Log in the user, who has passed all steps, and redirect.

    Raises:
        SessionEndedError: all sessions of the user were ended in the meantime.
    """
    await log_in(pending.user, remember=pending.remember)
    await flash("You are logged in.", "success")
    response = redirect(pending.target or url_for("user.members"), 303)
    devices.remember_device(response, pending.user)
    name = current_app.config["PENDING_LOGIN_COOKIE_NAME"]
    if name in request.cookies:
        delete_cookie(
            response,
            name,
        )
    return response


async def enabled_factors(user_id: int) -> tuple[SecondFactor, ...]:
    """Return the second factors that a user has turned on."""
    async with database.read(exact=True) as session:
        return tuple(
            [each for each in site.second_factors if await each.is_enabled(session, user_id)]
        )
