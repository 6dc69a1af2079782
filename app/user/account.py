"""The page on which people look after their own account."""

from collections.abc import Mapping
from typing import Any

from quart import Blueprint, Response, flash, redirect, render_template, request, url_for
from quart.typing import ResponseReturnValue, ResponseTypes
from wtforms import Form

from app.api import tokens
from app.database import current, read, write
from app.http import private
from app.mail import outbox
from app.security import audit
from app.security.audit import Event, audited, unaudited
from app.security.limits import Limit, by_account, limited, unlimited
from app.security.models import AuditEvent
from app.user import accounts, devices, mails, passwords, personal_data
from app.user.forms import DeleteForm, EmailForm, NameForm, PasswordForm
from app.user.login import log_out, member, members_only, renew
from app.user.views import TAKEN

blueprint = Blueprint("account", __name__, url_prefix="/account")

CHANGES = Limit("account", 20, 600)
MAILS = Limit("account-mails", 5, 3600)

DOWNLOADS = Limit("account-data", 10, 3600)
DOWNLOAD_SECONDS = 3600  # then a client that does not take the rest is dropped

EVENTS_SHOWN, FAILURES_SHOWN = 20, 5
EVENTS_DOWNLOADED, FAILURES_DOWNLOADED = 5000, 1000


@blueprint.get("/")
@private
@members_only
@unlimited("the newest events by an index")
async def show() -> ResponseReturnValue:
    return await page()


@blueprint.post("/name/")
@private
@members_only
@limited(CHANGES, by_account)
@audited(Event.NAME_CHANGED)
async def change_name() -> ResponseReturnValue:
    form = NameForm(await request.form)
    if not form.validate():
        return await page(name=form)
    try:
        async with write() as session:
            await accounts.change_name(session, member(), str(form.username.data))
    except accounts.Taken:
        form["username"].errors = [TAKEN]
        return await page(name=form)
    return await done("Your user name was changed.")


@blueprint.post("/email/")
@private
@members_only
@limited(MAILS, by_account)
@audited(Event.EMAIL_CHANGE_REQUESTED)
async def change_email() -> ResponseReturnValue:
    """Ask for another address, which becomes the account's once it is confirmed by mail."""
    form = EmailForm(await request.form)
    if not form.validate() or not await is_password_right(form):
        return await page(email=form)
    email = str(form.email.data)
    await mails.CONFIRMATIONS.require(email.lower())
    async with write() as session:
        await accounts.ask_for_email(session, member(), email)
    return await done("Follow the link in the mail that is on its way to the new address.")


@blueprint.post("/resend/")
@private
@members_only
@limited(MAILS, by_account)
@unaudited("sends again what was asked for before")
async def resend() -> ResponseReturnValue:
    """Send the mail again that confirms an address."""
    email = member().pending_email
    if email is None:
        return await done("Your address is confirmed already.")
    await mails.CONFIRMATIONS.require(email.lower())
    async with write() as session:
        await outbox.post(session, "confirm", user_id=member().id)
    return await done("The mail is on its way again.")


@blueprint.post("/password/")
@private
@members_only
@limited(CHANGES, by_account)
@audited(Event.PASSWORD_CHANGED)
async def change_password() -> ResponseReturnValue:
    """Change the password; every other session ends."""
    user = member()
    form = PasswordForm(
        await request.form, personal=(user.username, user.email, user.pending_email)
    )
    if not form.validate() or not await is_password_right(form):
        return await page(password=form)
    password_hash = await passwords.hash_password(str(form.password.data))
    async with write() as session:
        changed = await accounts.set_password(
            session, user, password_hash=password_hash, event=Event.PASSWORD_CHANGED
        )
    renew(changed)
    response = await done("Your password was changed. You were signed out everywhere else.")
    devices.remember(response, changed)
    return response


@blueprint.post("/sign-out/")
@private
@members_only
@limited(CHANGES, by_account)
@audited(Event.SESSIONS_ENDED, Event.TOKEN_DELETED)
async def sign_out_everywhere() -> ResponseReturnValue:
    """End all sessions, and revoke all access tokens unless the form says to keep them."""
    keeps_tokens = (await request.form).get("tokens") == "keep"
    async with write() as session:
        await accounts.sign_out(session, member())
        if not keeps_tokens:
            await tokens.end_all(session, member().id)
    log_out()
    await flash(
        "You are signed out everywhere."
        + ("" if keeps_tokens else " Your access tokens are revoked."),
        "info",
    )
    return redirect(url_for("public.home"), 303)


@blueprint.get("/data.json")
@private
@members_only
@limited(DOWNLOADS, by_account)
async def download() -> Response:
    """Return what is kept about the user, as a file. Of very many events, the newest are in it."""
    user, database = member(), current()
    async with read() as session:
        events = await audit.latest(
            session, user_id=user.id, failures=False, limit=EVENTS_DOWNLOADED + 1
        )
        failures = await audit.latest(
            session, user_id=user.id, failures=True, limit=FAILURES_DOWNLOADED + 1
        )
        access_tokens = await tokens.of_user(session, user.id)
    account = {
        "username": user.username,
        "email": user.email,
        "unconfirmed_email": user.pending_email,
        "role": user.role,
        "created_at": user.created_at.isoformat(),
        "events": [as_json(each) for each in events[:EVENTS_DOWNLOADED]],
        "events_truncated": len(events) > EVENTS_DOWNLOADED,
        "failed_logins": [as_json(each) for each in failures[:FAILURES_DOWNLOADED]],
        "failed_logins_truncated": len(failures) > FAILURES_DOWNLOADED,
        "access_tokens": [
            {
                "name": each.name,
                "scopes": each.scopes,
                "created_at": each.created_at.isoformat(),
                "expires_at": each.expires_at.isoformat(),
                "last_used_at": each.last_used_at and each.last_used_at.isoformat(),
            }
            for each in access_tokens
        ],
    }
    body = personal_data.written(database, user.id, account, personal_data.parts())
    response = Response(
        b"" if request.method == "HEAD" else body,
        content_type="application/json",
        headers={"Content-Disposition": 'attachment; filename="my-data.json"'},
    )
    response.timeout = DOWNLOAD_SECONDS
    return response


@blueprint.post("/delete/")
@private
@members_only
@limited(CHANGES, by_account)
@audited(Event.DELETED)
async def delete() -> ResponseReturnValue:
    form = DeleteForm(await request.form)
    if not form.validate() or not await is_password_right(form):
        return await page(delete=form)
    async with write() as session:
        await accounts.remove(session, member())
    log_out()
    await flash("Your account was deleted.", "info")
    return redirect(url_for("public.home"), 303)


async def page(**sent: Form) -> str:
    """Render the page with empty forms, but for one that was sent and refused."""
    user = member()
    forms: Mapping[str, Any] = {
        "name": NameForm(username=user.username),
        "email": EmailForm(),
        "password": PasswordForm(personal=()),
        "delete": DeleteForm(),
        **sent,
    }
    async with read() as session:
        events = await audit.latest(session, user_id=user.id, failures=False, limit=EVENTS_SHOWN)
        failures = await audit.latest(session, user_id=user.id, failures=True, limit=FAILURES_SHOWN)
    return await render_template(
        "user/account.html", forms=forms, events=events, failures=failures, refused=bool(sent)
    )


def as_json(event: AuditEvent) -> dict[str, Any]:
    """Return an event as its user may see it: where an administrator sits is none of it."""
    client = None if event.actor_id else event.client
    return {"at": event.at.isoformat(), "what": event.kind, "client": client}


@blueprint.errorhandler(accounts.SessionEnded)
async def session_ended(error: accounts.SessionEnded) -> ResponseTypes:
    """Send somebody to the login whose session was ended while the request was on its way."""
    log_out()
    return redirect(url_for("user.login"), 303)


async def done(message: str) -> ResponseTypes:
    await flash(message, "success")
    return redirect(url_for("account.show"), 303)


async def is_password_right(form: Form) -> bool:
    """Tell whether the user has typed the current password, and say it at the field if not."""
    field = form["current_password"]
    if await passwords.verify_password(member().password_hash, str(field.data)):
        return True
    field.errors = ["This is not your password."]
    return False
