"""The pages on which people make and delete their tokens."""

from quart import Blueprint, abort, current_app, flash, redirect, render_template, request, url_for
from quart.typing import ResponseReturnValue

from app.api import scopes, tokens
from app.api.forms import TokenForm
from app.database import read, write
from app.http import private
from app.security.audit import Event, audited
from app.security.limits import Limit, by_account, limited, unlimited
from app.user.accounts import SessionEnded
from app.user.login import log_out, member, members_only

blueprint = Blueprint("tokens", __name__, url_prefix="/account/tokens")

CHANGES = Limit("tokens", 20, 600)


@blueprint.get("/")
@private
@members_only
@unlimited("twenty rows at most, by an index")
async def index() -> ResponseReturnValue:
    return await page(TokenForm(known=scopes.known(current_app)))


@blueprint.post("/")
@private
@members_only
@limited(CHANGES, by_account)
@audited(Event.TOKEN_CREATED)
async def make() -> ResponseReturnValue:
    """Make a token, and show it in the answer: nothing else ever does."""
    form = TokenForm(await request.form, known=scopes.known(current_app))
    if not form.validate():
        return await page(form)
    try:
        async with write() as session:
            token = await tokens.make(
                session,
                member(),
                name=str(form["name"].data),
                scopes=form["scopes"].data,
                days=form["days"].data,
            )
    except tokens.TooMany:
        form.form_errors.append(f"You have {tokens.MOST} tokens. Delete one you do not need.")
        return await page(form)
    except SessionEnded:
        log_out()
        return redirect(url_for("user.login"), 303)
    return await page(TokenForm(known=scopes.known(current_app)), token=token)


@blueprint.post("/<id:token_id>/delete/")
@private
@members_only
@limited(CHANGES, by_account)
@audited(Event.TOKEN_DELETED)
async def delete(token_id: int) -> ResponseReturnValue:
    """Delete a token. Who uses it is refused from now on."""
    async with write() as session:
        if not await tokens.end(session, member().id, token_id):
            abort(404)
    await flash("The token was deleted.", "success")
    return redirect(url_for("tokens.index"), 303)


async def page(form: TokenForm, *, token: str | None = None) -> str:
    """Render the list and the form; with the token that was just made, if one was."""
    async with read() as session:
        found = await tokens.of_user(session, member().id)
    known = {scope.name: scope.sentence for scope in scopes.known(current_app)}
    return await render_template(
        "api/tokens.html", form=form, tokens=found, token=token, known=known, most=tokens.MOST
    )
