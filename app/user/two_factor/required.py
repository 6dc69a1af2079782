"""REQUIRE_TWO_FACTOR=administrators: without a second factor, no administration page opens."""

from quart import current_app, flash, redirect, request, url_for
from quart.typing import ResponseTypes

from app.user import pending_login
from app.user.login import current_user
from quart_upsun.policy import policy_of


async def redirect_administrator() -> ResponseTypes | None:
    """Redirect an administrator without a second factor, such as a code or a passkey, to enrol.

    Applies to every view with `@admin_required`, of whatever feature.
    """
    user = current_user()
    view = current_app.view_functions.get(request.endpoint or "")
    if user is None or not user.is_administrator or policy_of(view).access != "admin":
        return None
    if await pending_login.enabled_factors(user.id):
        return None
    await flash("Administrators must use two-factor authentication. Turn it on first.", "warning")
    return redirect(url_for("two_factor.show"), 303)
