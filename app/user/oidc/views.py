"""Log in with a provider, link logins on the account page, and confirm one's identity."""

import time
from typing import Any

from quart import Blueprint, abort, current_app, flash, redirect, render_template, request, url_for
from quart.typing import ResponseReturnValue, ResponseTypes

from app.extensions import database
from app.user import pending_login, proofs
from app.user.accounts import AccountTakenError
from app.user.audit_trail import Event
from app.user.login import current_session, current_user, logged_in_user, login_required
from app.user.oidc import flow as flows
from app.user.oidc import linked_logins
from app.user.oidc.errors import ProviderResponseError, ProviderUnavailableError
from app.user.oidc.flow import Flow, Purpose
from app.user.oidc.providers import Identity, Providers
from app.user.oidc.settings import Provider
from app.user.proofs import proof_required
from quart_upsun.http.redirects import safe_redirect_target
from quart_upsun.logging import get_logger
from quart_upsun.mail.delivery import external_url
from quart_upsun.policy import always_open, audited, no_rate_limit, no_store, not_audited, public
from quart_upsun.security import audit
from quart_upsun.security.limits import Limit, by_account, by_client, rate_limit

log = get_logger(__name__)

blueprint = Blueprint("oidc", __name__)

START_LIMIT = Limit("provider-start", 30, 60)
CALLBACK_LIMIT = Limit("provider-callback", 30, 60)
CREATE_LIMIT = Limit("provider-register", 20, 3600)
CHANGE_LIMIT = Limit("provider-change", 20, 600)
AUTH_TIME_LEEWAY_SECONDS = 60  # how far the provider's clock may differ


def get_providers() -> Providers:
    """Return the providers of the current application."""
    providers: Providers = current_app.extensions["oidc"]
    return providers


def get_provider(name: str) -> Provider:
    """Return a provider; abort with 404 if it is not configured."""
    return get_providers().get(name) or abort(404)


@blueprint.post("/login/with/<provider>/")
@always_open
@no_store
@public
@rate_limit(START_LIMIT)
@not_audited("changes nothing; the login is audited when the provider has confirmed it")
async def start(provider: str) -> ResponseReturnValue:
    """Send the user to the provider.

    A POST, so that other sites cannot start it: they could log in a user without asking.
    """
    target = safe_redirect_target(request.args.get("next"))
    return await begin(get_provider(provider), "login", target=target)


@blueprint.get("/login/with/<provider>/callback/")
@always_open
@no_store
@public
@rate_limit(CALLBACK_LIMIT)
@audited(
    Event.LOGGED_IN,
    Event.LOGIN_FAILED,
    Event.REGISTERED,
    Event.CONFIRMED,
    Event.PROVIDER_LINKED,
)
async def callback(provider: str) -> ResponseReturnValue:
    """Receive the response of the provider, which is accepted once and only in the same browser."""
    found = get_provider(provider)
    flow = flows.current()
    state = request.args.get("state", "")
    if flow is None or flow.provider != provider or not flow.matches(state):
        # The cookie stays: it may belong to a login in another tab, and this may be an attack.
        return await problem("expired", found, 400)
    try:
        response = await finish(found, flow)
    except ProviderUnavailableError as error:
        log.warning("login provider unavailable", provider=provider, reason=str(error))
        response = await problem("unavailable", found, 503, flow)
    except ProviderResponseError as error:
        log.warning("login provider response rejected", provider=provider, reason=str(error))
        response = await problem("rejected", found, 400, flow)
    flows.forget(response)
    return response


@blueprint.get("/account/providers/")
@no_store
@login_required
@no_rate_limit("at most ten rows by an index")
async def index() -> ResponseReturnValue:
    """List the linked logins."""
    providers = get_providers()
    if not providers.configured:
        abort(404)
    async with database.read() as session:
        logins = await linked_logins.list_logins(session, logged_in_user().id)
    return await render_template("oidc/index.html", logins=logins, labels=get_labels())


@blueprint.post("/account/providers/<provider>/link/")
@no_store
@login_required
@proof_required
@rate_limit(CHANGE_LIMIT, by_account)
@not_audited("changes nothing; the link is audited when the provider has confirmed it")
async def link(provider: str) -> ResponseReturnValue:
    """Send the user to the provider, to link a login there."""
    return await begin(get_provider(provider), "link", session_id=current_session().id)


@blueprint.post("/account/providers/<id:login_id>/unlink/")
@no_store
@login_required
@proof_required
@rate_limit(CHANGE_LIMIT, by_account)
@audited(Event.PROVIDER_UNLINKED)
async def unlink(login_id: int) -> ResponseReturnValue:
    """Unlink a login, unless it is the last way to log in."""
    try:
        async with database.write() as session:
            await linked_logins.unlink(session, logged_in_user(), login_id, labels=get_labels())
    except LookupError:
        abort(404)
    except linked_logins.LastLoginError:
        await flash(
            "This is your only way to log in. Set a password first, then unlink it.", "warning"
        )
    else:
        await flash("The login was unlinked.", "success")
    return redirect(url_for("oidc.index"), 303)


@blueprint.post("/account/providers/<provider>/prove/")
@no_store
@login_required
@rate_limit(CHANGE_LIMIT, by_account)
@not_audited("changes nothing but the time of the session's proof")
async def prove(provider: str) -> ResponseReturnValue:
    """Send the user to the provider, to log in there again."""
    found = get_provider(provider)
    if not found.proves:
        abort(404)
    target = safe_redirect_target(request.args.get("next"))
    return await begin(found, "proof", target=target, session_id=current_session().id)


async def begin(
    provider: Provider,
    purpose: Purpose,
    *,
    target: str | None = None,
    session_id: int | None = None,
) -> ResponseTypes:
    """Return the page that sends the browser to the provider, with the cookie of the flow.

    The page does so by `<meta http-equiv="refresh">`: the Content-Security-Policy forbids that a
    form's response redirects to another site.
    """
    flow = Flow.start(provider.name, purpose, now=time.time(), target=target, session_id=session_id)
    try:
        url = await get_providers().authorization_url(flow, callback_url(provider))
    except (ProviderUnavailableError, ProviderResponseError) as error:
        log.warning("login provider unavailable", provider=provider.name, reason=str(error))
        return await problem("unavailable", provider, 503, flow)
    page = await render_template("oidc/continue.html", provider=provider, url=url)
    response = await current_app.make_response(page)
    flows.remember(response, flow)
    return response


async def finish(provider: Provider, flow: Flow) -> ResponseTypes:
    """Return the response to the response of the provider.

    Raises:
        ProviderUnavailableError: the provider does not answer.
        ProviderResponseError: its response cannot be trusted.
    """
    if "error" in request.args:
        # The user has canceled, or the provider does not know the client or what it asks for.
        is_cancelled = request.args["error"] == "access_denied"
        if not is_cancelled:
            log.warning("login provider returned an error", provider=provider.name)
        return await problem("cancelled" if is_cancelled else "refused", provider, 400, flow)
    code = request.args.get("code")
    if not code:
        raise ProviderResponseError("the response has no code")
    identity = await get_providers().identify(
        flow, code=code, issuer=request.args.get("iss"), callback=callback_url(provider)
    )
    if flow.purpose == "login":
        return await finish_login(provider, flow, identity)
    if current_user() is None or current_session().id != flow.session_id:
        return await problem("other-session", provider, 403, flow)
    if flow.purpose == "link":
        return await finish_link(provider, flow, identity)
    return await finish_proof(provider, flow, identity)


async def finish_login(provider: Provider, flow: Flow, identity: Identity) -> ResponseTypes:
    """Log in the user of an identity. Create an account if nobody has its email address."""
    try:
        async with database.write() as session:
            user = await linked_logins.find_user(session, identity)
        if user is None:
            await CREATE_LIMIT.require(by_client())
            async with database.write() as session:
                user = await linked_logins.create_user(session, identity)
    except linked_logins.UnverifiedEmailError:
        return await problem("unverified", provider, 403, flow, email=identity.email)
    except linked_logins.EmailTakenError:
        return await problem("taken", provider, 409, flow, email=identity.email)
    except AccountTakenError:  # another request took the username
        return await problem("busy", provider, 409, flow)
    if user.deactivated_at is not None:
        async with database.write() as session:
            await audit.record(session, Event.LOGIN_FAILED, user.id)
        return await problem("deactivated", provider, 403, flow)
    return await pending_login.finish_first_step(user, remember=False, target=flow.target)


async def finish_link(provider: Provider, flow: Flow, identity: Identity) -> ResponseTypes:
    """Link the identity to the current user."""
    try:
        async with database.write() as session:
            is_new = await linked_logins.link(
                session, logged_in_user(), identity, label=provider.label
            )
    except linked_logins.LinkedElsewhereError:
        return await problem("linked-elsewhere", provider, 409, flow)
    except linked_logins.TooManyLoginsError:
        return await problem("too-many", provider, 409, flow, max_linked=linked_logins.MAX_LINKED)
    if is_new:
        await flash(f"You can now log in with {provider.label}.", "success")
    else:
        await flash(f"This login with {provider.label} is already linked.", "info")
    return redirect(url_for("oidc.index"), 303)


async def finish_proof(provider: Provider, flow: Flow, identity: Identity) -> ResponseTypes:
    """Accept the login as a proof, if the user has logged in at the provider just now.

    Providers may ignore that they were asked to let the user log in again.
    """
    async with database.read(exact=True) as session:
        is_own = await linked_logins.owns(session, logged_in_user().id, identity)
    is_fresh = (
        identity.auth_time is not None
        and identity.auth_time >= flow.started_at - AUTH_TIME_LEEWAY_SECONDS
    )
    if not is_own or not is_fresh or not provider.proves:
        return await problem("not-proved", provider, 403, flow)
    await proofs.record_proof()
    await flash("Your identity is confirmed. You can continue now.", "success")
    return redirect(flow.target or url_for("account.show"), 303)


async def problem(
    kind: str, provider: Provider, status: int, flow: Flow | None = None, **context: Any
) -> ResponseTypes:
    """Return the page about a login that did not succeed, which says what to do."""
    page = await render_template(
        "oidc/problem.html", kind=kind, provider=provider, flow=flow, **context
    )
    return await current_app.make_response((page, status))


def callback_url(provider: Provider) -> str:
    """Return the address of the callback, which the provider must know."""
    return external_url("oidc.callback", provider=provider.name)


def get_labels() -> dict[str, str]:
    """Return the labels of the configured providers by name."""
    return {each.name: each.label for each in get_providers().configured}
