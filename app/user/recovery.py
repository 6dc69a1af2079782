"""What links in mails lead to: confirming an address, replacing a forgotten password.

Each link leads to a page with a button: programs that look into mails follow links as well.
"""

from quart import Blueprint, flash, redirect, render_template, request, url_for
from quart.typing import ResponseReturnValue

from app.extensions import database, site
from app.user import accounts, devices, emails, passwords
from app.user.audit_trail import Event
from app.user.forms import ForgotForm, NewPasswordForm
from app.user.login import current_user, log_out
from quart_upsun.policy import audited, cache_public, no_rate_limit, no_store, public
from quart_upsun.security.limits import Limit, rate_limit

blueprint = Blueprint("recovery", __name__)

LINK_LIMIT = Limit("links", 30, 600)
FORGOT_PASSWORD_LIMIT = Limit("forgot", 10, 3600)
# To one address, whoever asks; beyond it the answer is the same, and no mail is sent.
RESET_EMAIL_LIMIT = Limit("forgot-address", 3, 3600)


@blueprint.get("/confirm/<token>/")
@no_store
@public
@no_rate_limit("one row, and only for a token that is signed")
async def confirm(token: str) -> ResponseReturnValue:
    """Ask whether to confirm the address that the link was sent to."""
    content = emails.read_confirm_token(token)
    if content is None:
        return await render_expired_link()
    user_id, email = content
    async with database.read() as session:
        user = await accounts.get_user(session, user_id)
    if user is None or email not in {user.email, user.pending_email}:
        return await render_expired_link()
    return await render_template("user/confirm.html", token=token, email=email, user=user)


@blueprint.post("/confirm/<token>/")
@no_store
@public
@rate_limit(LINK_LIMIT)
@audited(Event.CONFIRMED)
async def confirm_address(token: str) -> ResponseReturnValue:
    """Confirm it. A second time does no harm."""
    content = emails.read_confirm_token(token)
    if content is None:
        return await render_expired_link()
    user_id, email = content
    try:
        async with database.write() as session:
            confirmed = await accounts.confirm_email(session, user_id, email)
            user = None if confirmed else await accounts.get_user(session, user_id)
    except accounts.AccountTakenError:
        await flash("Another account has this address, and was confirmed before.", "warning")
    else:
        if not confirmed and (user is None or user.email != email):
            return await render_expired_link()
        await flash("Your address is confirmed.", "success")
    return redirect(url_for("account.show" if current_user() else "public.home"), 303)


@blueprint.get("/forgot/")
@cache_public(300)
@public
@no_rate_limit("no query, and the router keeps it")
async def forgot() -> ResponseReturnValue:
    """Ask for the address of the account whose password is forgotten."""
    return await render_template("user/forgot.html", form=ForgotForm())


@blueprint.post("/forgot/")
@no_store
@public
@rate_limit(FORGOT_PASSWORD_LIMIT)
@audited(Event.RESET_REQUESTED)
async def send_reset() -> ResponseReturnValue:
    """Send a link there, if there is such an account. The answer does not tell."""
    form = ForgotForm(await request.form)
    if not form.validate():
        return await render_template("user/forgot.html", form=form)
    email = str(form.email.data)
    if not await RESET_EMAIL_LIMIT.count_request(email.lower()):
        async with database.write() as session:
            await accounts.request_password_reset(session, email)
    await flash(
        "If there is an account with this address, a mail with a link is on its way. The link"
        " works for an hour.",
        "info",
    )
    return redirect(url_for("recovery.forgot"), 303)


@blueprint.get("/reset/<token>/")
@no_store
@public
@no_rate_limit("one row, and only for a token that is signed")
async def reset(token: str) -> ResponseReturnValue:
    """Ask for the new password."""
    async with database.read() as session:
        user = await emails.read_reset_token(session, token)
    if user is None:
        return await render_expired_link()
    form = NewPasswordForm(personal=())
    return await render_template("user/reset.html", form=form, token=token, user=user)


@blueprint.post("/reset/<token>/")
@no_store
@public
@rate_limit(LINK_LIMIT)
@audited(Event.PASSWORD_RESET, Event.TOKEN_DELETED)
async def set_password(token: str) -> ResponseReturnValue:
    """Set it, and end every session and token there is.

    This is the way back in for somebody whose account was taken over, and who did that may have
    made a token. Who is logged in, and changes the password, sees the list of tokens instead.
    """
    async with database.read() as session:
        user = await emails.read_reset_token(session, token)
    if user is None:
        return await render_expired_link()
    form = NewPasswordForm(
        await request.form, personal=(user.username, user.email, user.pending_email)
    )
    if not form.validate():
        return await render_template("user/reset.html", form=form, token=token, user=user)
    password_hash = await passwords.hash_password(str(form.password.data))
    try:
        async with database.write() as session:
            changed = await accounts.set_password(
                session, user, password_hash=password_hash, event=Event.PASSWORD_RESET
            )
            await site.revoke_access(session, changed.id)
    except accounts.SessionEndedError:  # the same link, a moment before
        return await render_expired_link()
    log_out()
    await flash("Your password was changed. You can now log in with it.", "success")
    response = redirect(url_for("user.login"), 303)
    # Whoever reads the owner's mail does not wait behind those who guess.
    devices.remember_device(response, changed)
    return response


async def render_expired_link() -> ResponseReturnValue:
    """Answer 410 to a link that was used, is too old, or was never one of ours."""
    return await render_template("user/expired_link.html"), 410
