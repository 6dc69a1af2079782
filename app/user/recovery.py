"""Email confirmation and password reset.

The links in emails lead to pages with a button, because link scanners open them, too.
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
# Reset emails to one address. Beyond the limit the response is the same, but no email is sent.
RESET_EMAIL_LIMIT = Limit("forgot-address", 3, 3600)


@blueprint.get("/confirm/<token>/")
@no_store
@public
@no_rate_limit("reads one row, and only for a valid token")
async def confirm(token: str) -> ResponseReturnValue:
    """Show the button that confirms the email address of a link."""
    content = emails.read_confirm_token(token)
    if content is None:
        return await render_expired_link()
    user_id, email = content
    async with database.read(exact=True) as session:
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
    """Confirm the email address. Idempotent."""
    content = emails.read_confirm_token(token)
    if content is None:
        return await render_expired_link()
    user_id, email = content
    try:
        async with database.write() as session:
            confirmed = await accounts.confirm_email(session, user_id, email)
            user = None if confirmed else await accounts.get_user(session, user_id)
    except accounts.AccountTakenError:
        await flash("Another account has already confirmed this email address.", "warning")
    else:
        if not confirmed and (user is None or user.email != email):
            return await render_expired_link()
        await flash("Your email address is confirmed.", "success")
    return redirect(url_for("account.show" if current_user() else "public.home"), 303)


@blueprint.get("/forgot/")
@cache_public(300)
@public
@no_rate_limit("no query, and cached by the router")
async def forgot() -> ResponseReturnValue:
    """Show the form that requests a password reset link."""
    return await render_template("user/forgot.html", form=ForgotForm())


@blueprint.post("/forgot/")
@no_store
@public
@rate_limit(FORGOT_PASSWORD_LIMIT)
@audited(Event.RESET_REQUESTED)
async def send_reset() -> ResponseReturnValue:
    """Send a reset link if the account exists. The response does not reveal whether it does."""
    form = ForgotForm(await request.form)
    if not form.validate():
        return await render_template("user/forgot.html", form=form)
    email = str(form.email.data)
    if not await RESET_EMAIL_LIMIT.count_request(email.lower()):
        async with database.write() as session:
            await accounts.request_password_reset(session, email)
    await flash(
        "If there is an account with this email address, a reset link was sent to it. The link"
        " expires after one hour.",
        "info",
    )
    return redirect(url_for("recovery.forgot"), 303)


@blueprint.get("/reset/<token>/")
@no_store
@public
@no_rate_limit("reads one row, and only for a valid token")
async def reset(token: str) -> ResponseReturnValue:
    """Show the form for the new password."""
    async with database.read(exact=True) as session:
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
    """Set the password, end all sessions and revoke all access tokens.

    A user whose account was taken over recovers it here, and the attacker may have created a token.
    Changing the password while logged in keeps tokens, because the user can review them. Passkeys
    and linked logins are kept, too: the owner may need them, so the page and the mail name them.
    """
    async with database.read(exact=True) as session:
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
            has_other_login = await site.can_log_in_without_password(session, changed.id)
    except accounts.SessionEndedError:  # a concurrent request used the link
        return await render_expired_link()
    await log_out()
    await flash("Your password was changed. Log in with your new password.", "success")
    if has_other_login:
        await flash(
            "Your account can also log in without the password, with a passkey or another provider."
            " After you log in, remove those that you do not know from your account.",
            "warning",
        )
    response = redirect(url_for("user.login"), 303)
    # The owner has proved access to the email address, so login limits of others do not apply.
    devices.remember_device(response, changed)
    return response


async def render_expired_link() -> ResponseReturnValue:
    """Return a 410 for a link that is invalid, used or expired."""
    return await render_template("user/expired_link.html"), 410
