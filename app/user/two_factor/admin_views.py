"""The action on the administration page of a user who has lost the device."""

from quart import Blueprint, abort, flash, redirect, url_for
from quart.typing import ResponseReturnValue

from app.extensions import database
from app.user import accounts
from app.user.audit_trail import Event
from app.user.login import admin_required, logged_in_user
from app.user.proofs import proof_required
from app.user.two_factor import enrolment
from quart_upsun.policy import audited, no_store
from quart_upsun.security.limits import Limit, by_account, rate_limit

blueprint = Blueprint("two_factor_admin", __name__, url_prefix="/admin/users")

CHANGE_LIMIT = Limit("two-factor-admin", 60, 60)


@blueprint.post("/<id:user_id>/two-factor/disable/")
@no_store
@admin_required
@proof_required
@rate_limit(CHANGE_LIMIT, by_account)
@audited(Event.TWO_FACTOR_DISABLED)
async def disable(user_id: int) -> ResponseReturnValue:
    """Turn off two-factor authentication of another user, and end their sessions.

    Administrators turn off their own on the account page, which asks for a code.
    """
    if user_id == logged_in_user().id:
        await flash("Turn off your own two-factor authentication on your account page.", "warning")
        return redirect(url_for("admin.user", user_id=user_id), 303)
    try:
        async with database.write() as session:
            user = await accounts.get_user(session, user_id) or abort(404)
            await enrolment.disable_for(session, user, actor_id=logged_in_user().id)
    except enrolment.NotEnabledError:
        await flash("Two-factor authentication is already off.", "info")
    else:
        await flash(
            "Two-factor authentication was turned off, and the user was logged out everywhere.",
            "success",
        )
    return redirect(url_for("admin.user", user_id=user_id), 303)
