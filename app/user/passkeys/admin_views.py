"""The action on the administration page of a user who has lost all passkeys."""

from quart import Blueprint, abort, flash, redirect, url_for
from quart.typing import ResponseReturnValue

from app.extensions import database
from app.user import accounts
from app.user.audit_trail import Event
from app.user.login import admin_required, logged_in_user
from app.user.passkeys import queries
from app.user.proofs import proof_required
from quart_upsun.policy import audited, no_store
from quart_upsun.security.limits import Limit, by_account, rate_limit

blueprint = Blueprint("passkeys_admin", __name__, url_prefix="/admin/users")

CHANGE_LIMIT = Limit("passkeys-admin", 60, 60)


@blueprint.post("/<id:user_id>/passkeys/remove/")
@no_store
@admin_required
@proof_required
@rate_limit(CHANGE_LIMIT, by_account)
@audited(Event.PASSKEY_REMOVED)
async def remove(user_id: int) -> ResponseReturnValue:
    """Remove all passkeys of another user, and end their sessions.

    Administrators remove their own on the account page, one at a time.
    """
    actor_id = logged_in_user().id
    if user_id == actor_id:
        await flash("Remove your own passkeys on your account page.", "warning")
        return redirect(url_for("admin.user", user_id=user_id), 303)
    async with database.write() as session:
        user = await accounts.get_user(session, user_id) or abort(404)
        count = await queries.remove_all_passkeys(session, user, actor_id=actor_id)
    if count:
        await flash("The passkeys were removed, and the user was logged out everywhere.", "success")
    else:
        await flash("This user has no passkeys.", "info")
    return redirect(url_for("admin.user", user_id=user_id), 303)
