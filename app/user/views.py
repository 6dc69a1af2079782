"""Registration, login, logout, and the members' page."""

import re

from quart import Blueprint, flash, redirect, render_template, request, url_for
from quart.typing import ResponseReturnValue

from app.database import read, write
from app.http import local_target, private, shared
from app.user import accounts, passwords
from app.user.forms import USERNAME, LoginForm, RegisterForm
from app.user.login import current_user, everybody, log_in, log_out, members_only
from app.user.models import User

blueprint = Blueprint("user", __name__)

TAKEN = {
    "username": "This user name is taken.",
    "email": "An account with this address exists already.",
}


@blueprint.get("/register/")
@shared(300)
@everybody
async def register() -> ResponseReturnValue:
    """Show the empty registration form."""
    if current_user():
        return redirect(url_for("user.members"), 303)
    return await render_template("user/register.html", form=RegisterForm())


@blueprint.post("/register/")
@private
@everybody
async def create_account() -> ResponseReturnValue:
    """Create an account, or show the form again with what is wrong beside each field."""
    form = RegisterForm(await request.form)
    if not form.validate():
        return await render_template("user/register.html", form=form)
    wanted = {"username": str(form.username.data), "email": str(form.email.data)}
    async with read() as session:
        taken = await accounts.taken(session, **wanted)
    if not taken:
        password_hash = await passwords.hash_password(str(form.password.data))
        try:
            async with write() as session:
                await accounts.create(session, **wanted, password_hash=password_hash)
        except accounts.Taken as error:  # somebody else was quicker
            taken = [error.field]
    if taken:
        for name in taken:
            form[name].errors = [TAKEN[name]]
        return await render_template("user/register.html", form=form)
    await flash("Thank you for registering. You can now log in.", "success")
    return redirect(url_for("public.home"), 303)


@blueprint.get("/login/")
@shared(300)
@everybody
async def login() -> ResponseReturnValue:
    """Show the login form."""
    target = local_target(request.args.get("next"))
    if current_user():
        return redirect(target or url_for("user.members"), 303)
    return await render_template("user/login.html", form=LoginForm(), next=target)


@blueprint.post("/login/")
@private
@everybody
async def check_login() -> ResponseReturnValue:
    """Log in with the form of the page or of the navigation bar."""
    target = local_target(request.args.get("next"))
    form = LoginForm(await request.form)
    if form.validate():
        user = await authenticate(str(form.username.data), str(form.password.data))
        if user is not None:
            log_in(user)
            await flash("You are logged in.", "success")
            return redirect(target or url_for("user.members"), 303)
        form.refuse()
    return await render_template("user/login.html", form=form, next=target)


@blueprint.post("/logout/")
@private
@everybody
async def logout() -> ResponseReturnValue:
    """Log out; harmless for who is not logged in."""
    log_out()
    await flash("You are logged out.", "info")
    return redirect(url_for("public.home"), 303)


@blueprint.get("/users/")
@private
@members_only
async def members() -> ResponseReturnValue:
    """Show the members who joined last."""
    async with read() as session:
        newest = await accounts.newest(session)
    return await render_template("user/members.html", members=newest)


async def authenticate(username: str, password: str) -> User | None:
    """Return the user, or None after the same work whether the name or the password is wrong."""
    user = None
    if re.match(USERNAME, username):  # no other name exists, and NUL is none the database takes
        async with read() as session:
            user = await accounts.by_username(session, username)
    password_hash = user.password_hash if user else None
    if not await passwords.verify_password(password_hash, password) or user is None:
        return None
    if passwords.needs_rehash(user.password_hash):
        new = await passwords.hash_password(password)
        async with write() as session:
            await accounts.change_hash(session, user.id, old=user.password_hash, new=new)
    return user
