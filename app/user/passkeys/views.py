"""The pages on which users add, rename and remove their passkeys."""

from quart import Blueprint, abort, current_app, flash, redirect, render_template, request, url_for
from quart.typing import ResponseReturnValue

from app.extensions import database
from app.user import devices
from app.user.audit_trail import Event
from app.user.login import current_session, logged_in_user, login_required, renew_login
from app.user.passkeys import ceremonies, challenges, queries
from app.user.passkeys.authentication import (
    REFUSED,
    AuthenticationError,
    relying_party,
    request_options,
    send_options,
    use_challenge,
)
from app.user.passkeys.ceremonies import MalformedResponseError, RefusedResponseError
from app.user.passkeys.forms import NameForm
from app.user.passkeys.models import NAME_LENGTH
from app.user.proofs import proof_required
from quart_upsun.logging import get_logger
from quart_upsun.policy import audited, no_rate_limit, no_store, not_audited
from quart_upsun.security.limits import Limit, by_account, rate_limit
from quart_upsun.text import clean

log = get_logger(__name__)

blueprint = Blueprint("passkeys", __name__, url_prefix="/account/passkeys")

CHANGE_LIMIT = Limit("passkeys", 20, 600)
OPTIONS_LIMIT = Limit("passkey-account-options", 30, 600)

TOO_MANY = f"You already have {queries.MAX_PASSKEYS} passkeys. Remove one first."
LAST_LOGIN = (
    "This passkey is your only way to log in. Set a password or add another passkey, then remove"
    " it."
)


@blueprint.get("/")
@no_store
@login_required
@no_rate_limit("at most twenty rows by an index")
async def index() -> ResponseReturnValue:
    user, party = logged_in_user(), relying_party()
    async with database.read() as session:
        found = await queries.list_passkeys(session, user.id)
        is_required = await queries.is_required(session, user.id, party.id)
    return await render_template(
        "passkeys/index.html",
        passkeys=found,
        is_required=is_required,
        rp_id=party.id,
        max_passkeys=queries.MAX_PASSKEYS,
    )


@blueprint.get("/new/")
@no_store
@login_required
@proof_required
@no_rate_limit("counts rows by an index")
async def new() -> ResponseReturnValue:
    """Show the form that adds a passkey."""
    async with database.read() as session:
        found = await queries.list_passkeys(session, logged_in_user().id)
    if len(found) >= queries.MAX_PASSKEYS:
        await flash(TOO_MANY, "danger")
        return redirect(url_for("passkeys.index"), 303)
    return await render_template("passkeys/new.html", form=NameForm())


@blueprint.post("/options/")
@no_store
@login_required
@proof_required
@rate_limit(OPTIONS_LIMIT, by_account)
@not_audited("issues a challenge, which is not stored")
async def options() -> ResponseReturnValue:
    """Return the options to create a passkey, as JSON."""
    user, party = logged_in_user(), relying_party()
    async with database.write() as session:
        handle = await queries.user_handle(session, user.id)
        existing = await queries.known_passkeys(session, user.id, party.id)
    nonce = challenges.browser_nonce()
    challenge = challenges.issue(challenges.REGISTER, subject(), nonce)
    found = await ceremonies.registration_options(
        party,
        challenge=challenge.value,
        site_name=current_app.extensions["quart_upsun"].settings.site_name,
        username=user.username,
        handle=handle,
        existing=existing,
    )
    return await send_options(found, challenge.token, nonce)


@blueprint.post("/")
@no_store
@login_required
@proof_required
@rate_limit(CHANGE_LIMIT, by_account)
@audited(Event.PASSKEY_ADDED)
async def add() -> ResponseReturnValue:
    """Add the passkey that the browser has created.

    It exists on the device by now, so a missing or long name is corrected instead of refused.
    """
    user, party = logged_in_user(), relying_party()
    form = await request.form
    name = clean(form.get("name", ""), NAME_LENGTH) or "Passkey"
    try:
        challenge = await use_challenge(form.get("token", ""), challenges.REGISTER, subject())
        registered = await ceremonies.verify_registration(
            party, response=form.get("response", ""), challenge=challenge
        )
        async with database.write() as session:
            await queries.add_passkey(session, user, registered, rp_id=party.id, name=name)
    except MalformedResponseError:
        abort(400)
    except RefusedResponseError as error:
        log.info("passkey not added", reason=str(error))
        return await refuse(REFUSED)
    except AuthenticationError as error:
        return await refuse(str(error))
    except queries.PasskeyExistsError:
        return await refuse("This passkey is already registered.")
    except queries.TooManyPasskeysError:
        return await refuse(TOO_MANY)
    await flash(f"The passkey “{name}” was added.", "success")
    return redirect(url_for("passkeys.index"), 303)


@blueprint.get("/<id:passkey_id>/")
@no_store
@login_required
@no_rate_limit("at most twenty rows by an index")
async def edit(passkey_id: int) -> ResponseReturnValue:
    """Show the form that renames a passkey."""
    async with database.read() as session:
        found = await queries.list_passkeys(session, logged_in_user().id)
    name = next((each.name for each in found if each.id == passkey_id), None)
    if name is None:
        abort(404)
    form = NameForm(name=name)
    return await render_template("passkeys/rename.html", form=form, passkey_id=passkey_id)


@blueprint.post("/<id:passkey_id>/")
@no_store
@login_required
@rate_limit(CHANGE_LIMIT, by_account)
@audited(Event.PASSKEY_RENAMED)
async def rename(passkey_id: int) -> ResponseReturnValue:
    form = NameForm(await request.form)
    if not form.validate():
        return await render_template("passkeys/rename.html", form=form, passkey_id=passkey_id)
    async with database.write() as session:
        if not await queries.rename_passkey(
            session, logged_in_user().id, passkey_id, str(form.name.data)
        ):
            abort(404)
    await flash("The passkey was renamed.", "success")
    return redirect(url_for("passkeys.index"), 303)


@blueprint.post("/<id:passkey_id>/delete/")
@no_store
@login_required
@proof_required
@rate_limit(CHANGE_LIMIT, by_account)
@audited(Event.PASSKEY_REMOVED)
async def remove(passkey_id: int) -> ResponseReturnValue:
    """Remove a passkey. Logins with it are refused from now on."""
    try:
        async with database.write() as session:
            if not await queries.remove_passkey(
                session, logged_in_user(), passkey_id, relying_party().id
            ):
                abort(404)
    except queries.LastLoginError:
        await flash(LAST_LOGIN, "danger")
    else:
        await flash("The passkey was removed. You can delete it from your device, too.", "success")
    return redirect(url_for("passkeys.index"), 303)


@blueprint.post("/required/")
@no_store
@login_required
@proof_required
@rate_limit(CHANGE_LIMIT, by_account)
@audited(Event.PASSKEY_REQUIRED, Event.PASSKEY_NOT_REQUIRED)
async def change_required() -> ResponseReturnValue:
    """Set whether a login with the password also needs a passkey, and end all other sessions."""
    required = (await request.form).get("required") == "yes"
    user, response = logged_in_user(), redirect(url_for("passkeys.index"), 303)
    try:
        async with database.write() as session:
            changed = await queries.set_required(session, user, required, relying_party().id)
    except queries.NoPasskeyError:
        await flash("Add a passkey first.", "danger")
        return response
    if changed.session_version != user.session_version:
        await renew_login(changed)
        devices.remember_device(response, changed)
    await flash(
        "To log in with your password, you now also need a passkey."
        if required
        else "You can now log in with your password alone.",
        "success",
    )
    return response


@blueprint.post("/proof/options/")
@no_store
@login_required
@rate_limit(OPTIONS_LIMIT, by_account)
@not_audited("issues a challenge, which is not stored")
async def proof_options() -> ResponseReturnValue:
    """Return the options to confirm the user's identity with a passkey, as JSON."""
    async with database.read(exact=True) as session:
        allowed = await queries.known_passkeys(session, logged_in_user().id, relying_party().id)
    return await request_options(challenges.PROVE, subject(), allowed)


async def refuse(message: str) -> ResponseReturnValue:
    """Show the form again, with a message."""
    await flash(message, "danger")
    form = NameForm(await request.form)
    return await render_template("passkeys/new.html", form=form), 403


def subject() -> str:
    """Return what challenges of this session are for. A session gets a new id with each proof."""
    return f"session of {logged_in_user().id} since {current_session().created_at.isoformat()}"
