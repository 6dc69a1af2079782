"""The pages on which users create and revoke their access tokens."""

from quart import Blueprint, abort, current_app, flash, redirect, render_template, request, url_for
from quart.typing import ResponseReturnValue

from app.extensions import database
from app.user.audit_trail import Event
from app.user.login import logged_in_user, login_required
from app.user.proofs import proof_required
from app.user.tokens import access_tokens
from app.user.tokens.forms import TokenForm
from quart_upsun.api import scopes
from quart_upsun.policy import audited, no_rate_limit, no_store
from quart_upsun.security.limits import Limit, by_account, rate_limit

blueprint = Blueprint("tokens", __name__, url_prefix="/account/tokens")

CHANGE_LIMIT = Limit("tokens", 20, 600)


@blueprint.get("/")
@no_store
@login_required
@no_rate_limit("at most twenty rows by an index")
async def index() -> ResponseReturnValue:
    return await render_page(TokenForm(available_scopes=scopes.known(current_app)))


@blueprint.post("/")
@no_store
@login_required
@proof_required
@rate_limit(CHANGE_LIMIT, by_account)
@audited(Event.TOKEN_CREATED)
async def create() -> ResponseReturnValue:
    """Create a token and show it once, in this response."""
    form = TokenForm(await request.form, available_scopes=scopes.known(current_app))
    if not form.validate():
        return await render_page(form)
    try:
        async with database.write() as session:
            token = await access_tokens.create_token(
                session,
                logged_in_user(),
                name=str(form["name"].data),
                scopes=form["scopes"].data,
                days=form["days"].data,
            )
    except access_tokens.TooManyTokensError:
        form.form_errors.append(
            f"You already have {access_tokens.MAX_TOKENS} access tokens. Revoke one first."
        )
        return await render_page(form)
    return await render_page(TokenForm(available_scopes=scopes.known(current_app)), token=token)


@blueprint.post("/<id:token_id>/delete/")
@no_store
@login_required
@proof_required
@rate_limit(CHANGE_LIMIT, by_account)
@audited(Event.TOKEN_DELETED)
async def delete(token_id: int) -> ResponseReturnValue:
    """Revoke a token. Requests with it are rejected from now on."""
    async with database.write() as session:
        if not await access_tokens.revoke_token(session, logged_in_user().id, token_id):
            abort(404)
    await flash("Access token revoked.", "success")
    return redirect(url_for("tokens.index"), 303)


async def render_page(form: TokenForm, *, token: str | None = None) -> str:
    """Render the list and the form, and a new token if there is one."""
    async with database.read() as session:
        found = await access_tokens.list_tokens(session, logged_in_user().id)
    descriptions = {scope.name: scope.sentence for scope in scopes.known(current_app)}
    return await render_template(
        "tokens/index.html",
        form=form,
        tokens=found,
        token=token,
        scope_descriptions=descriptions,
        max_tokens=access_tokens.MAX_TOKENS,
    )
