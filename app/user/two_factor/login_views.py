"""The second step of a login: a code of the authenticator app, or a recovery code."""

from quart import Blueprint, flash, redirect, render_template, request, url_for
from quart.typing import ResponseReturnValue
from werkzeug.exceptions import TooManyRequests

from app.user import pending_login
from app.user.audit_trail import Event
from app.user.pending_login import PendingLogin
from app.user.two_factor import trusted_browsers
from app.user.two_factor.forms import CodeForm, RecoveryCodeForm
from app.user.two_factor.verification import check_code, check_recovery_code
from quart_upsun.policy import always_open, audited, no_rate_limit, no_store, public
from quart_upsun.security.limits import Limit, rate_limit
from quart_upsun.web.forms import add_form_error

blueprint = Blueprint("two_factor_login", __name__, url_prefix="/login")

CODE_LIMIT = Limit("login-code", 30, 60)
RECOVERY_CODE_LIMIT = Limit("login-recovery-code", 30, 60)


@blueprint.get("/code/")
@always_open
@no_store
@public
@no_rate_limit("reads a few rows, and only for a valid cookie")
async def code() -> ResponseReturnValue:
    """Ask for a code of the authenticator app."""
    pending = await pending_login.get()
    if pending is None:
        return await redirect_to_login()
    return await render_code(pending, CodeForm())


@blueprint.post("/code/")
@always_open
@no_store
@public
@rate_limit(CODE_LIMIT)
@audited(Event.LOGGED_IN, Event.CODE_REJECTED)
async def check() -> ResponseReturnValue:
    """Log in with a code of the authenticator app."""
    pending = await pending_login.get()
    if pending is None:
        return await redirect_to_login()
    form = CodeForm(await request.form)
    if not form.validate():
        return await render_code(pending, form)
    try:
        is_right = await check_code(pending.user, str(form.code.data))
    except TooManyRequests as error:
        wait = str(error.retry_after)
        add_form_error(
            form,
            f"Too many incorrect codes. Try again in {wait} seconds, or use a recovery code.",
        )
        return await render_code(pending, form), 429, {"Retry-After": wait}
    if not is_right:
        form["code"].errors = [
            "This code is not correct, or it has been used. Enter the next code that the app shows."
        ]
        return await render_code(pending, form)
    response = await pending_login.complete(pending)
    if form.trust.data:
        trusted_browsers.trust(response, pending.user)
    return response


@blueprint.get("/recovery-code/")
@always_open
@no_store
@public
@no_rate_limit("reads a few rows, and only for a valid cookie")
async def recovery_code() -> ResponseReturnValue:
    """Ask for a recovery code."""
    pending = await pending_login.get()
    if pending is None:
        return await redirect_to_login()
    return await render_recovery(RecoveryCodeForm())


@blueprint.post("/recovery-code/")
@always_open
@no_store
@public
@rate_limit(RECOVERY_CODE_LIMIT)
@audited(Event.LOGGED_IN, Event.RECOVERY_CODE_USED, Event.CODE_REJECTED)
async def check_recovery() -> ResponseReturnValue:
    """Log in with a recovery code, which is then used up."""
    pending = await pending_login.get()
    if pending is None:
        return await redirect_to_login()
    form = RecoveryCodeForm(await request.form)
    if not form.validate():
        return await render_recovery(form)
    try:
        is_right = await check_recovery_code(pending.user, str(form.code.data))
    except TooManyRequests as error:
        wait = str(error.retry_after)
        add_form_error(form, f"Too many incorrect codes. Try again in {wait} seconds.")
        return await render_recovery(form), 429, {"Retry-After": wait}
    if not is_right:
        form["code"].errors = ["This recovery code is not correct, or it has been used."]
        return await render_recovery(form)
    return await pending_login.complete(pending)


async def redirect_to_login() -> ResponseReturnValue:
    if request.method == "POST":  # a form that was open for too long
        await flash("Your login has expired. Log in again.", "warning")
    return redirect(url_for("user.login"), 303)


async def render_code(pending: PendingLogin, form: CodeForm) -> str:
    others = pending.other_factors("code")
    return await render_template("two_factor/login_code.html", form=form, others=others)


async def render_recovery(form: RecoveryCodeForm) -> str:
    return await render_template("two_factor/login_recovery_code.html", form=form)
