"""Registration, login, logout, the members' page, and invitations."""

import re

from quart import Blueprint, flash, redirect, render_template, request, url_for
from quart.typing import ResponseReturnValue

from app.extensions import database
from app.user import accounts, devices, emails, passwords
from app.user.audit_trail import Event
from app.user.forms import USERNAME_PATTERN, InviteForm, LoginForm, RegisterForm
from app.user.login import (
    confirmed_required,
    current_user,
    log_in,
    log_out,
    logged_in_user,
    login_required,
)
from app.user.models import User
from quart_upsun.http.redirects import safe_redirect_target
from quart_upsun.mail import outbox
from quart_upsun.policy import audited, cache_public, no_rate_limit, no_store, public
from quart_upsun.security import audit
from quart_upsun.security.limits import Limit, by_account, by_client, rate_limit
from quart_upsun.web.forms import add_form_error

blueprint = Blueprint("user", __name__)

USERNAME_TAKEN = "This user name is taken."

REGISTER_LIMIT = Limit("register", 20, 3600)
LOGIN_LIMIT = Limit("login", 30, 60)
LOGOUT_LIMIT = Limit("logout", 60, 60)
INVITE_LIMIT = Limit("invite", 10, 24 * 3600)
# Attempts to log in to one account: of one client; and of all clients together. A browser that its
# owner has logged in with is neither, so that strangers who use these up do not keep the owner out.
CLIENT_LOGIN_LIMIT = Limit("login-attempts", 10, 300)
ACCOUNT_LOGIN_LIMIT = Limit("all-login-attempts", 50, 1500)


class TooManyAttemptsError(Exception):
    """Too many attempts to log in to one account.

    Attributes:
        wait: seconds until the next one is looked at.
    """

    def __init__(self, wait: int) -> None:
        super().__init__(wait)
        self.retry_after = wait


@blueprint.get("/register/")
@cache_public(300)
@public
@no_rate_limit("no query, and the router keeps it")
async def register() -> ResponseReturnValue:
    """Show the empty registration form."""
    if current_user():
        return redirect(url_for("user.members"), 303)
    return await render_template("user/register.html", form=RegisterForm())


@blueprint.post("/register/")
@no_store
@public
@rate_limit(REGISTER_LIMIT)
@audited(Event.REGISTERED)
async def create_account() -> ResponseReturnValue:
    """Create an account, or show the form again with what is wrong beside each field.

    Nobody learns here whether an address has an account: the mail that is sent says it to who can
    read it.
    """
    form = RegisterForm(await request.form)
    if not form.validate():
        return await render_template("user/register.html", form=form)
    username = str(form.username.data)
    async with database.read() as session:
        is_taken = await accounts.get_user_by_username(session, username) is not None
    if not is_taken:
        password_hash = await passwords.hash_password(str(form.password.data))
        email = str(form.email.data)
        # Beyond the limit the answer is the same, and the mail can be asked for later.
        should_confirm = not await emails.CONFIRMATION_LIMIT.count_request(email.lower())
        try:
            async with database.write() as session:
                await accounts.create_user(
                    session,
                    username=username,
                    email=email,
                    password_hash=password_hash,
                    should_confirm=should_confirm,
                )
        except accounts.AccountTakenError:  # somebody else was quicker
            is_taken = True
    if is_taken:
        form["username"].errors = [USERNAME_TAKEN]
        return await render_template("user/register.html", form=form)
    await flash(
        "Thank you for registering. You can now log in; to confirm your address, follow the link"
        " in the mail that is on its way.",
        "success",
    )
    return redirect(url_for("public.home"), 303)


@blueprint.get("/login/")
@cache_public(300)
@public
@no_rate_limit("no query, and the router keeps it")
async def login() -> ResponseReturnValue:
    """Show the login form."""
    target = safe_redirect_target(request.args.get("next"))
    if current_user():
        return redirect(target or url_for("user.members"), 303)
    return await render_template("user/login.html", form=LoginForm(), next=target)


@blueprint.post("/login/")
@no_store
@public
@rate_limit(LOGIN_LIMIT)
@audited(Event.LOGGED_IN, Event.LOGIN_FAILED)
async def check_login() -> ResponseReturnValue:
    """Log in with the form of the page or of the navigation bar."""
    target = safe_redirect_target(request.args.get("next"))
    form = LoginForm(await request.form)
    headers, status = {}, 200
    if form.validate():
        try:
            user = await authenticate(str(form.username.data), str(form.password.data))
        except TooManyAttemptsError as error:
            add_form_error(
                form,
                f"Too many attempts for this account. Try again in {error.retry_after} seconds, or"
                " set a new password by mail: then this browser does not have to wait.",
            )
            headers, status = {"Retry-After": str(error.retry_after)}, 429
        else:
            if user is not None and user.deactivated_at is None:
                log_in(user, remember=form.remember.data)
                await flash("You are logged in.", "success")
                response = redirect(target or url_for("user.members"), 303)
                devices.remember_device(response, user)
                return response
            # Deactivation is told to who knows the password; which of the two is wrong, to nobody.
            add_form_error(
                form,
                "This account is deactivated."
                if user is not None
                else "The user name or the password is wrong.",
            )
    page = await render_template("user/login.html", form=form, next=target)
    return page, status, headers


@blueprint.post("/logout/")
@no_store
@public
@rate_limit(LOGOUT_LIMIT)
@audited(Event.LOGGED_OUT)
async def logout() -> ResponseReturnValue:
    """Log out; harmless for who is not logged in."""
    user = current_user()
    if user is not None:
        async with database.write() as session:
            await audit.record(session, Event.LOGGED_OUT, user.id)
    log_out()
    await flash("You are logged out.", "info")
    return redirect(url_for("public.home"), 303)


@blueprint.get("/users/")
@no_store
@login_required
@no_rate_limit("the newest twenty by an index")
async def members() -> ResponseReturnValue:
    """Show the members who joined last."""
    async with database.direct() as connection:
        newest = await accounts.list_newest_users(connection)
    return await render_template("user/members.html", members=newest)


@blueprint.get("/invite/")
@no_store
@confirmed_required
@no_rate_limit("no query")
async def invite() -> ResponseReturnValue:
    """Ask whom to invite."""
    return await render_template("user/invite.html", form=InviteForm())


@blueprint.post("/invite/")
@no_store
@confirmed_required
@rate_limit(INVITE_LIMIT, by_account)
@audited(Event.INVITED)
async def send_invitation() -> ResponseReturnValue:
    """Send somebody the way to the registration."""
    form = InviteForm(await request.form)
    if not form.validate():
        return await render_template("user/invite.html", form=form)
    async with database.write() as session:
        await outbox.send_later(
            session, "invitation", user_id=logged_in_user().id, email=form.email.data
        )
        await audit.record(session, Event.INVITED, logged_in_user().id)
    await flash("The invitation is on its way.", "success")
    return redirect(url_for("user.members"), 303)


async def authenticate(username: str, password: str) -> User | None:
    """Return the user, or None after the same work whether the name or the password is wrong.

    Raises:
        Slowed: too many attempts, whether there is such a user or not.
    """
    user = None
    if re.match(
        USERNAME_PATTERN, username
    ):  # no other name exists, and NUL is none the database takes
        async with database.read() as session:
            user = await accounts.get_user_by_username(session, username)
    account = f"name {username.lower()}"
    device = devices.known_device(user) if user else None
    subject = device or f"{account} from {by_client()}"
    wait = await CLIENT_LOGIN_LIMIT.count_request(subject)
    if not wait and device is None:
        wait = await ACCOUNT_LOGIN_LIMIT.count_request(account)
    if wait:
        raise TooManyAttemptsError(wait)
    is_right = await passwords.verify_password(user.password_hash if user else None, password)
    is_logged_in = user is not None and is_right and user.deactivated_at is None
    async with database.write() as session:
        event = Event.LOGGED_IN if is_logged_in else Event.LOGIN_FAILED
        await audit.record(session, event, user and user.id)
    if user is None or not is_right:
        return None
    await CLIENT_LOGIN_LIMIT.reset(subject)  # the owner's slips of the keyboard do not add up
    if passwords.needs_rehash(user.password_hash):
        new = await passwords.hash_password(password)
        async with database.write() as session:
            await accounts.replace_password_hash(session, user.id, old=user.password_hash, new=new)
    return user
