"""Log in with a passkey, alone or after the password."""

from quart import Blueprint, abort, flash, redirect, render_template, request, url_for
from quart.typing import ResponseReturnValue

from app.extensions import database
from app.user import accounts, pending_login
from app.user.audit_trail import Event
from app.user.forms import LoginForm
from app.user.passkeys import challenges, queries
from app.user.passkeys.authentication import (
    AuthenticationError,
    authenticate,
    relying_party,
    request_options,
)
from app.user.passkeys.ceremonies import MalformedResponseError
from app.user.pending_login import PendingLogin
from quart_upsun.http.redirects import safe_redirect_target
from quart_upsun.policy import always_open, audited, no_rate_limit, no_store, not_audited, public
from quart_upsun.security import audit
from quart_upsun.security.limits import Limit, rate_limit

blueprint = Blueprint("passkey_login", __name__, url_prefix="/login/passkey")

# Each open login page asks for a challenge every few minutes.
OPTIONS_LIMIT = Limit("passkey-options", 60, 60)
LOGIN_LIMIT = Limit("passkey-login", 30, 60)
SECOND_OPTIONS_LIMIT = Limit("passkey-second-options", 30, 60)
SECOND_LIMIT = Limit("passkey-second", 30, 60)

FACTOR = "passkey"  # the name of the second factor
DEACTIVATED = "This account is deactivated. Contact an administrator."


@blueprint.post("/options/")
@always_open
@no_store
@public
@rate_limit(OPTIONS_LIMIT)
@not_audited("issues a challenge, which is not stored")
async def options() -> ResponseReturnValue:
    """Return the options to log in with any passkey of this site, as JSON."""
    return await request_options(challenges.LOG_IN, "")


@blueprint.post("/")
@always_open
@no_store
@public
@rate_limit(LOGIN_LIMIT)
@audited(Event.LOGGED_IN, Event.LOGIN_FAILED, Event.PASSKEY_REFUSED)
async def log_in() -> ResponseReturnValue:
    """Log in without a username. The passkey verified the user, so it is both factors."""
    target = safe_redirect_target(request.args.get("next"))
    form = await request.form
    try:
        user_id = await authenticate(
            response=form.get("response", ""),
            token=form.get("token", ""),
            purpose=challenges.LOG_IN,
            subject="",
        )
        async with database.read(exact=True) as session:
            user = await accounts.get_user(session, user_id)
        if user is None or user.deactivated_at is not None:
            async with database.write() as session:
                await audit.record(session, Event.LOGIN_FAILED, user_id)
            raise AuthenticationError(DEACTIVATED)
    except MalformedResponseError:
        abort(400)
    except AuthenticationError as error:
        await flash(str(error), "danger")
        return await render_template("user/login.html", form=LoginForm(), next=target), 403
    return await pending_login.finish_first_step(
        user, remember=bool(form.get("remember")), target=target, is_second_factor_done=True
    )


@blueprint.get("/second/")
@always_open
@no_store
@public
@no_rate_limit("reads the user of the pending login")
async def second_factor() -> ResponseReturnValue:
    """Ask for a passkey after the password."""
    pending = await pending_login.get()
    return await render_page(pending) if pending else redirect(url_for("user.login"), 303)


@blueprint.post("/second/options/")
@always_open
@no_store
@public
@rate_limit(SECOND_OPTIONS_LIMIT)
@not_audited("issues a challenge, which is not stored")
async def second_factor_options() -> ResponseReturnValue:
    """Return the options to confirm a pending login with a passkey of its user, as JSON."""
    pending = await pending_login.get()
    if pending is None:
        abort(401)
    async with database.read(exact=True) as session:
        allowed = await queries.known_passkeys(session, pending.user.id, relying_party().id)
    return await request_options(challenges.SECOND_FACTOR, subject_of(pending), allowed)


@blueprint.post("/second/")
@always_open
@no_store
@public
@rate_limit(SECOND_LIMIT)
@audited(Event.LOGGED_IN, Event.LOGIN_FAILED, Event.PASSKEY_REFUSED)
async def check_second_factor() -> ResponseReturnValue:
    """Complete a pending login with a passkey of its user."""
    pending = await pending_login.get()
    if pending is None:
        return redirect(url_for("user.login"), 303)
    form = await request.form
    try:
        await authenticate(
            response=form.get("response", ""),
            token=form.get("token", ""),
            purpose=challenges.SECOND_FACTOR,
            subject=subject_of(pending),
            user_id=pending.user.id,
        )
    except MalformedResponseError:
        abort(400)
    except AuthenticationError as error:
        await flash(str(error), "danger")
        return await render_page(pending), 403
    return await pending_login.complete(pending)


async def render_page(pending: PendingLogin) -> str:
    return await render_template(
        "passkeys/second_factor.html", other_factors=pending.other_factors(FACTOR)
    )


def subject_of(pending: PendingLogin) -> str:
    return f"pending login of {pending.user.id}"
