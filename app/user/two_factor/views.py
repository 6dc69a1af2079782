"""The pages on which users turn two-factor authentication on and off, and renew recovery codes."""

import asyncio
from collections.abc import Sequence
from typing import Any, cast
from urllib.parse import quote

from quart import (
    Blueprint,
    Response,
    flash,
    make_response,
    redirect,
    render_template,
    request,
    url_for,
)
from quart.typing import ResponseReturnValue

from app.extensions import database
from app.user import devices
from app.user.audit_trail import Event
from app.user.login import logged_in_user, login_required, renew_login
from app.user.proofs import check_password, proof_required
from app.user.two_factor import enrolment, recovery_codes, totp
from app.user.two_factor.forms import DisableForm, SetupForm
from app.user.two_factor.verification import check_any_code
from quart_upsun.current import current_toolkit
from quart_upsun.policy import audited, no_rate_limit, no_store, not_audited
from quart_upsun.security.limits import Limit, by_account, rate_limit

blueprint = Blueprint("two_factor", __name__, url_prefix="/account/two-factor")

CHANGE_LIMIT = Limit("two-factor", 30, 600)


@blueprint.get("/")
@no_store
@login_required
@no_rate_limit("reads a few rows with an index")
async def show() -> ResponseReturnValue:
    """Show whether two-factor authentication is on, and the forms to change that."""
    return await render_page(disable_form())


@blueprint.post("/")
@no_store
@login_required
@proof_required
@rate_limit(CHANGE_LIMIT, by_account)
@not_audited("takes effect only when a code confirms it, which is audited")
async def start() -> ResponseReturnValue:
    """Create a secret, and continue to the page with its QR code."""
    async with database.write() as session:
        await enrolment.start(session, logged_in_user())
    return redirect(url_for("two_factor.setup"), 303)


@blueprint.get("/setup/")
@no_store
@login_required
@proof_required
@no_rate_limit("reads one row")
async def setup() -> ResponseReturnValue:
    """Show the QR code, and ask for a first code."""
    return await render_setup(SetupForm())


@blueprint.post("/setup/")
@no_store
@login_required
@proof_required
@rate_limit(CHANGE_LIMIT, by_account)
@audited(Event.TWO_FACTOR_ENABLED)
async def confirm() -> ResponseReturnValue:
    """Turn on two-factor authentication, and show the recovery codes once, in this response."""
    form = SetupForm(await request.form)
    if not form.validate():
        return await render_setup(form)
    async with database.write() as session:
        enrolled = await enrolment.confirm(session, logged_in_user(), str(form.code.data))
    if enrolled is None:
        form["code"].errors = [
            "This code is not correct. Check the time of your device, and enter the code that the"
            " app shows now."
        ]
        return await render_setup(form)
    await renew_login(enrolled.user)
    response = await render_recovery_codes(enrolled.recovery_codes, is_new=True)
    devices.remember_device(response, enrolled.user)
    return response


@blueprint.post("/recovery-codes/")
@no_store
@login_required
@proof_required
@rate_limit(CHANGE_LIMIT, by_account)
@audited(Event.RECOVERY_CODES_RENEWED)
async def renew_codes() -> ResponseReturnValue:
    """Replace the recovery codes, and show the new ones once, in this response."""
    try:
        async with database.write() as session:
            codes = await enrolment.renew_recovery_codes(session, logged_in_user())
    except enrolment.NotEnabledError:
        return redirect(url_for("two_factor.show"), 303)
    return await render_recovery_codes(codes, is_new=False)


@blueprint.post("/disable/")
@no_store
@login_required
@rate_limit(CHANGE_LIMIT, by_account)
@audited(Event.TWO_FACTOR_DISABLED, Event.RECOVERY_CODE_USED, Event.CODE_REJECTED)
async def disable() -> ResponseReturnValue:
    """Turn off two-factor authentication, with the password and a code."""
    form = disable_form(await request.form)
    if not form.validate():
        return await render_page(form)
    if form.current_password and not await check_password(str(form.current_password.data)):
        form["current_password"].errors = ["Incorrect password."]
        return await render_page(form)
    if not await check_any_code(logged_in_user(), str(form.code.data)):
        form["code"].errors = ["This code is not correct, or it has been used."]
        return await render_page(form)
    try:
        async with database.write() as session:
            changed = await enrolment.disable(session, logged_in_user())
    except enrolment.NotEnabledError:
        return redirect(url_for("two_factor.show"), 303)
    await renew_login(changed)
    await flash("Two-factor authentication is off. You were logged out everywhere else.", "success")
    response = redirect(url_for("two_factor.show"), 303)
    devices.remember_device(response, changed)
    return response


def disable_form(submitted: Any = None) -> DisableForm:
    """Return the form, without the password field for users who have none."""
    form = DisableForm(submitted)
    if not logged_in_user().has_password:
        del form.current_password
    return form


async def render_page(form: DisableForm) -> str:
    user_id = logged_in_user().id
    async with database.read() as session:
        is_enabled = await enrolment.is_enabled(session, user_id)
        codes_left = await recovery_codes.count_unused(session, user_id) if is_enabled else 0
    return await render_template(
        "two_factor/show.html",
        form=form,
        is_enabled=is_enabled,
        codes_left=codes_left,
        codes_count=recovery_codes.COUNT,
    )


async def render_setup(form: SetupForm) -> ResponseReturnValue:
    """Render the QR code and the secret; redirect if none waits for confirmation."""
    user = logged_in_user()
    async with database.read(exact=True) as session:
        secret = await enrolment.get_unconfirmed_secret(session, user.id)
    if secret is None:
        return redirect(url_for("two_factor.show"), 303)
    uri = totp.provisioning_uri(
        secret, username=user.username, issuer=current_toolkit().settings.site_name
    )
    return await render_template(
        "two_factor/setup.html",
        form=form,
        uri=uri,
        # In a thread: the import of the library and the drawing block for 50 ms.
        qr_code=await asyncio.to_thread(totp.qr_code, uri),
        secret=totp.group(secret),
    )


async def render_recovery_codes(codes: Sequence[str], *, is_new: bool) -> Response:
    """Render the page with the codes and a link that saves them as a file.

    The link contains the codes: downloading asks the server for nothing, and it stores nothing.
    """
    site_name = current_toolkit().settings.site_name
    heading = f"Recovery codes of {logged_in_user().username} at {site_name}"
    text = "\r\n".join([heading, "Each code works once.", "", *codes, ""])
    page = await render_template(
        "two_factor/recovery_codes.html",
        codes=codes,
        is_new=is_new,
        file=f"data:text/plain;charset=utf-8,{quote(text)}",
    )
    return cast(Response, await make_response(page))
