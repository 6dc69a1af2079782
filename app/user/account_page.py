"""The account page, on which users manage their own account."""

from collections.abc import Mapping
from typing import Any

from quart import Blueprint, Response, abort, flash, redirect, render_template, request, url_for
from quart.typing import ResponseReturnValue, ResponseTypes

from app.extensions import database, site
from app.user import accounts, devices, emails, passwords, personal_data, proofs, sessions
from app.user.audit_trail import Event
from app.user.forms import EmailForm, NameForm, NewPasswordForm, PasswordForm
from app.user.login import (
    current_session,
    forget_login,
    logged_in_user,
    login_required,
    renew_login,
)
from app.user.proofs import proof_required, proof_required_without_password
from app.user.views import USERNAME_TAKEN
from quart_upsun.current import current_toolkit
from quart_upsun.mail import outbox
from quart_upsun.policy import audited, no_rate_limit, no_store, not_audited
from quart_upsun.security import audit
from quart_upsun.security.limits import Limit, by_account, rate_limit
from quart_upsun.security.models import AuditEvent
from quart_upsun.web.forms import Form

blueprint = Blueprint("account", __name__, url_prefix="/account")

CHANGE_LIMIT = Limit("account", 20, 600)
EMAIL_LIMIT = Limit("account-mails", 5, 3600)

DOWNLOAD_LIMIT = Limit("account-data", 10, 3600)
DOWNLOAD_TIMEOUT_SECONDS = 3600  # slower clients are disconnected

# Listed separately, because anyone can cause any number of them.
FAILED_LOGIN_EVENTS = (Event.LOGIN_FAILED,)
MAX_EVENTS_SHOWN, MAX_FAILED_LOGINS_SHOWN = 20, 5
MAX_EVENTS_DOWNLOADED, MAX_FAILED_LOGINS_DOWNLOADED = 5000, 1000


@blueprint.get("/")
@no_store
@login_required
@no_rate_limit("reads the newest events with an index")
async def show() -> ResponseReturnValue:
    return await render_page()


@blueprint.post("/name/")
@no_store
@login_required
@rate_limit(CHANGE_LIMIT, by_account)
@audited(Event.NAME_CHANGED)
async def change_name() -> ResponseReturnValue:
    form = NameForm(await request.form)
    if not form.validate():
        return await render_page(name=form)
    try:
        async with database.write() as session:
            await accounts.change_username(session, logged_in_user(), str(form.username.data))
    except accounts.AccountTakenError:
        form["username"].errors = [USERNAME_TAKEN]
        return await render_page(name=form)
    return await redirect_with_message("Your username was changed.")


@blueprint.post("/email/")
@no_store
@login_required
@proof_required
@rate_limit(EMAIL_LIMIT, by_account)
@audited(Event.EMAIL_CHANGE_REQUESTED)
async def change_email() -> ResponseReturnValue:
    """Request a new email address, which takes effect once it is confirmed."""
    form = EmailForm(await request.form)
    if not form.validate():
        return await render_page(email=form)
    email = str(form.email.data)
    await emails.CONFIRMATION_LIMIT.require(email.lower())
    async with database.write() as session:
        await accounts.request_email_change(session, logged_in_user(), email)
    return await redirect_with_message(
        "To confirm the change, open the link in the email sent to your new address."
    )


@blueprint.post("/resend/")
@no_store
@login_required
@rate_limit(EMAIL_LIMIT, by_account)
@not_audited("resends an email that was audited when it was requested")
async def resend() -> ResponseReturnValue:
    """Resend the confirmation email."""
    email = logged_in_user().pending_email
    if email is None:
        return await redirect_with_message("Your email address is already confirmed.")
    await emails.CONFIRMATION_LIMIT.require(email.lower())
    async with database.write() as session:
        await outbox.send_later(session, "confirm", user_id=logged_in_user().id)
    return await redirect_with_message("The confirmation email was sent again.")


@blueprint.post("/password/")
@no_store
@login_required
@proof_required_without_password
@rate_limit(CHANGE_LIMIT, by_account)
@audited(Event.PASSWORD_CHANGED, Event.PROOF_FAILED)
async def change_password() -> ResponseReturnValue:
    """Change or set the password and end all other sessions.

    The current password is required even after a recent proof, which may have been another:
    https://github.com/OWASP/ASVS/blob/v5.0.0/5.0/en/0x15-V6-Authentication.md, 6.2.3
    """
    user = logged_in_user()
    form_class = PasswordForm if user.has_password else NewPasswordForm
    form = form_class(await request.form, personal=(user.username, user.email, user.pending_email))
    if not form.validate() or not await check_current_password(form):
        return await render_page(password=form)
    password_hash = await passwords.hash_password(str(form.password.data))
    async with database.write() as session:
        changed = await accounts.set_password(
            session, user, password_hash=password_hash, event=Event.PASSWORD_CHANGED
        )
    await renew_login(changed)
    response = await redirect_with_message(
        "Your password was changed. You were logged out everywhere else."
    )
    devices.remember_device(response, changed)
    return response


@blueprint.post("/sign-out/")
@no_store
@login_required
@proof_required
@rate_limit(CHANGE_LIMIT, by_account)
@audited(Event.SESSIONS_ENDED, Event.TOKEN_DELETED)
async def sign_out_everywhere() -> ResponseReturnValue:
    """End all sessions, and revoke all access tokens unless the user keeps them."""
    revokes = site.revoke_callbacks and (await request.form).get("tokens") != "keep"
    async with database.write() as session:
        await accounts.sign_out_everywhere(session, logged_in_user())
        if revokes:
            await site.revoke_access(session, logged_in_user().id)
    forget_login()
    await flash(
        "You were logged out everywhere."
        + (" Your access tokens were revoked." if revokes else ""),
        "info",
    )
    return redirect(url_for("public.home"), 303)


@blueprint.post("/sessions/<id:session_id>/end/")
@no_store
@login_required
@proof_required
@rate_limit(CHANGE_LIMIT, by_account)
@audited(Event.SESSION_ENDED)
async def end_session(session_id: int) -> ResponseReturnValue:
    """End another session of the user."""
    if session_id == current_session().id:
        abort(404)  # "Log out" ends it
    async with database.write() as session:
        if not await sessions.end_session(session, logged_in_user().id, session_id):
            abort(404)
    return await redirect_with_message("The session was ended.")


@blueprint.post("/sessions/end-others/")
@no_store
@login_required
@proof_required
@rate_limit(CHANGE_LIMIT, by_account)
@audited(Event.OTHER_SESSIONS_ENDED)
async def end_other_sessions() -> ResponseReturnValue:
    """End all sessions of the user except this one. Access tokens are kept."""
    async with database.write() as session:
        await sessions.end_other_sessions(session, logged_in_user().id, current_session().id)
    return await redirect_with_message("You were logged out everywhere else.")


@blueprint.get("/data.json")
@no_store
@login_required
@rate_limit(DOWNLOAD_LIMIT, by_account)
async def download() -> Response:
    """Return the user's data as a JSON file. The lists of events are truncated to the newest."""
    user, database = logged_in_user(), current_toolkit().database
    async with database.read() as session:
        events = await audit.list_events(
            session,
            user_id=user.id,
            except_kinds=FAILED_LOGIN_EVENTS,
            limit=MAX_EVENTS_DOWNLOADED + 1,
        )
        failures = await audit.list_events(
            session,
            user_id=user.id,
            kinds=FAILED_LOGIN_EVENTS,
            limit=MAX_FAILED_LOGINS_DOWNLOADED + 1,
        )
    account = {
        "username": user.username,
        "email": user.email,
        "unconfirmed_email": user.pending_email,
        "role": user.role,
        "created_at": user.created_at.isoformat(),
        "events": [event_to_json(each) for each in events[:MAX_EVENTS_DOWNLOADED]],
        "events_truncated": len(events) > MAX_EVENTS_DOWNLOADED,
        "failed_logins": [event_to_json(each) for each in failures[:MAX_FAILED_LOGINS_DOWNLOADED]],
        "failed_logins_truncated": len(failures) > MAX_FAILED_LOGINS_DOWNLOADED,
    }
    body = personal_data.stream_personal_data(database, user.id, account, site.personal_data)
    response = Response(
        b"" if request.method == "HEAD" else body,
        content_type="application/json",
        headers={"Content-Disposition": 'attachment; filename="my-data.json"'},
    )
    response.timeout = DOWNLOAD_TIMEOUT_SECONDS
    return response


@blueprint.post("/delete/")
@no_store
@login_required
@proof_required
@rate_limit(CHANGE_LIMIT, by_account)
@audited(Event.DELETED)
async def delete() -> ResponseReturnValue:
    async with database.write() as session:
        await accounts.delete_user(session, logged_in_user())
    forget_login()
    await flash("Your account was deleted.", "info")
    return redirect(url_for("public.home"), 303)


async def render_page(**submitted_forms: Form) -> str:
    """Render the page with empty forms, except for those that were submitted and are invalid."""
    user = logged_in_user()
    forms: Mapping[str, Any] = {
        "name": NameForm(username=user.username),
        "email": EmailForm(),
        "password": (PasswordForm if user.has_password else NewPasswordForm)(personal=()),
        **submitted_forms,
    }
    async with database.read() as session:
        user_sessions = await sessions.list_sessions(session, user.id)
        events = await audit.list_events(
            session, user_id=user.id, except_kinds=FAILED_LOGIN_EVENTS, limit=MAX_EVENTS_SHOWN
        )
        failures = await audit.list_events(
            session, user_id=user.id, kinds=FAILED_LOGIN_EVENTS, limit=MAX_FAILED_LOGINS_SHOWN
        )
    return await render_template(
        "user/account.html",
        forms=forms,
        sessions=user_sessions,
        this_session=current_session().id,
        describe_browser=sessions.describe_browser,
        events=events,
        failures=failures,
        has_errors=bool(submitted_forms),
    )


def event_to_json(event: AuditEvent) -> dict[str, Any]:
    """Return an event for its user, without the IP address of an administrator."""
    client = None if event.actor_id else event.client
    return {"at": event.at.isoformat(), "what": event.kind, "client": client}


async def redirect_with_message(message: str) -> ResponseTypes:
    await flash(message, "success")
    return redirect(url_for("account.show"), 303)


async def check_current_password(form: Form) -> bool:
    """Return whether the current password is correct; add a field error if it is not.

    A form without the field is that of a user without a password.
    """
    if "current_password" not in form:
        return True
    field = form["current_password"]
    if await proofs.check_password(str(field.data)):
        return True
    field.errors = ["Incorrect password."]
    return False
