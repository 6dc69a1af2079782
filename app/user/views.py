"""Registration, login, logout, the members' page, and invitations."""

import re

from quart import Blueprint, flash, redirect, render_template, request, url_for
from quart.typing import ResponseReturnValue

from app.extensions import database, site
from app.user import accounts, devices, emails, passwords, pending_login
from app.user.audit_trail import Event
from app.user.forms import USERNAME_PATTERN, InviteForm, LoginForm, RegisterForm
from app.user.login import (
    confirmed_required,
    current_user,
    log_out,
    logged_in_user,
    login_required,
)
from app.user.models import User
from quart_upsun.http.redirects import safe_redirect_target
from quart_upsun.mail import outbox
from quart_upsun.policy import always_open, audited, cache_public, no_rate_limit, no_store, public
from quart_upsun.security import audit
from quart_upsun.security.limits import Limit, by_account, by_client, rate_limit
from quart_upsun.web.forms import add_form_error

blueprint = Blueprint("user", __name__)

USERNAME_TAKEN = "This username is already taken."

REGISTER_LIMIT = Limit("register", 20, 3600)
LOGIN_LIMIT = Limit("login", 30, 60)
LOGOUT_LIMIT = Limit("logout", 60, 60)
INVITE_LIMIT = Limit("invite", 10, 24 * 3600)
# Login attempts per account: from one client, and from all clients together. Known devices do not
# count towards either, so that an attacker who exhausts a limit does not lock out the owner.
CLIENT_LOGIN_LIMIT = Limit("login-attempts", 10, 300)
ACCOUNT_LOGIN_LIMIT = Limit("all-login-attempts", 50, 1500)


class TooManyAttemptsError(Exception):
    """Too many login attempts for one account.

    Attributes:
        retry_after: seconds until the next attempt is allowed.
    """

    def __init__(self, retry_after: int) -> None:
        super().__init__(retry_after)
        self.retry_after = retry_after


@blueprint.get("/register/")
@cache_public(300)
@public
@no_rate_limit("no query, and cached by the router")
async def register() -> ResponseReturnValue:
    """Show the registration form."""
    if current_user():
        return redirect(url_for("user.members"), 303)
    return await render_template("user/register.html", form=RegisterForm())


@blueprint.post("/register/")
@no_store
@public
@rate_limit(REGISTER_LIMIT)
@audited(Event.REGISTERED)
async def create_account() -> ResponseReturnValue:
    """Create an account, or show the form with its validation errors.

    The response does not reveal whether an email address has an account. Only the email that is
    sent to it does.
    """
    form = RegisterForm(await request.form)
    if not form.validate():
        return await render_template("user/register.html", form=form)
    username = str(form.username.data)
    async with database.read(exact=True) as session:
        is_taken = await accounts.get_user_by_username(session, username) is not None
    if not is_taken:
        password_hash = await passwords.hash_password(str(form.password.data))
        email = str(form.email.data)
        # Beyond the limit the response is the same. The user can resend the email later.
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
        except accounts.AccountTakenError:  # another request was faster
            is_taken = True
    if is_taken:
        form["username"].errors = [USERNAME_TAKEN]
        return await render_template("user/register.html", form=form)
    await flash(
        "Thank you for registering. You can now log in. To confirm your email address, open the"
        " link in the email that was sent to you.",
        "success",
    )
    return redirect(url_for("public.home"), 303)


@blueprint.get("/login/")
@always_open
@cache_public(300)
@public
@no_rate_limit("no query, and cached by the router")
async def login() -> ResponseReturnValue:
    """Show the login form."""
    target = safe_redirect_target(request.args.get("next"))
    if current_user():
        return redirect(target or url_for("user.members"), 303)
    return await render_template("user/login.html", form=LoginForm(), next=target)


@blueprint.post("/login/")
@always_open
@no_store
@public
@rate_limit(LOGIN_LIMIT)
@audited(Event.LOGGED_IN, Event.LOGIN_FAILED)
async def check_login() -> ResponseReturnValue:
    """Log in with the form of the login page or of the navigation bar."""
    target = safe_redirect_target(request.args.get("next"))
    form = LoginForm(await request.form)
    headers, status = {}, 200
    if form.validate():
        try:
            user = await authenticate(str(form.username.data), str(form.password.data))
        except TooManyAttemptsError as error:
            add_form_error(
                form,
                "Too many login attempts for this account. Try again in"
                f" {error.retry_after} seconds, or reset your password to log in now.",
            )
            headers, status = {"Retry-After": str(error.retry_after)}, 429
        else:
            if user is not None and user.deactivated_at is None:
                return await pending_login.finish_first_step(
                    user, remember=form.remember.data, target=target
                )
            # Only someone who knows the password learns that the account is deactivated. Whether
            # the username or the password was wrong is never revealed.
            add_form_error(
                form,
                "This account is deactivated. Contact an administrator."
                if user is not None
                else "Incorrect username or password.",
            )
    page = await render_template("user/login.html", form=form, next=target)
    return page, status, headers


@blueprint.post("/logout/")
@always_open
@no_store
@public
@rate_limit(LOGOUT_LIMIT)
@audited(Event.LOGGED_OUT)
async def logout() -> ResponseReturnValue:
    """Log out. Does nothing for anonymous users."""
    await log_out()
    await flash("You are logged out.", "info")
    return redirect(url_for("public.home"), 303)


@blueprint.get("/users/")
@no_store
@login_required
@no_rate_limit("reads 20 rows with an index")
async def members() -> ResponseReturnValue:
    """List the newest members."""
    async with database.direct() as connection:
        newest = await accounts.list_newest_users(connection)
    return await render_template("user/members.html", members=newest)


@blueprint.get("/invite/")
@no_store
@confirmed_required
@no_rate_limit("no query")
async def invite() -> ResponseReturnValue:
    """Show the invitation form."""
    return await render_template("user/invite.html", form=InviteForm())


@blueprint.post("/invite/")
@no_store
@confirmed_required
@rate_limit(INVITE_LIMIT, by_account)
@audited(Event.INVITED)
async def send_invitation() -> ResponseReturnValue:
    """Send an invitation by email."""
    form = InviteForm(await request.form)
    if not form.validate():
        return await render_template("user/invite.html", form=form)
    async with database.write() as session:
        await outbox.send_later(
            session, "invitation", user_id=logged_in_user().id, email=form.email.data
        )
        await audit.record(session, Event.INVITED, logged_in_user().id)
    await flash("The invitation was sent.", "success")
    return redirect(url_for("user.members"), 303)


async def authenticate(username: str, password: str) -> User | None:
    """Return the user, or None if the username or password is wrong.

    Both cases do the same amount of work, so that timing does not reveal which usernames exist.

    Raises:
        TooManyAttemptsError: the rate limit is exceeded. Applies to unknown usernames, too.
    """
    user = None
    if re.match(USERNAME_PATTERN, username):  # PostgreSQL rejects NUL characters
        async with database.read(exact=True) as session:
            user = await accounts.get_user_by_username(session, username)
    account = f"name {username.lower()}"
    device = devices.known_device(user) if user else None
    subject = device or f"{account} from {by_client()}"
    retry_after = await CLIENT_LOGIN_LIMIT.count_request(subject)
    if not retry_after and device is None:
        retry_after = await ACCOUNT_LOGIN_LIMIT.count_request(account)
    if retry_after:
        raise TooManyAttemptsError(retry_after)
    is_right = await site.verify_password(user.password_hash if user else None, password)
    if user is None or not is_right or user.deactivated_at is not None:
        async with database.write() as session:
            await audit.record(session, Event.LOGIN_FAILED, user and user.id)
    if user is None or user.password_hash is None or not is_right:
        return None
    await CLIENT_LOGIN_LIMIT.reset(subject)  # typos do not add up
    if passwords.needs_rehash(user.password_hash):
        new = await passwords.hash_password(password)
        async with database.write() as session:
            await accounts.replace_password_hash(session, user.id, old=user.password_hash, new=new)
    return user
