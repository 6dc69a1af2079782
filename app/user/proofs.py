"""Proofs of identity: sensitive changes need a recent one, because a session can be stolen.

A login is a proof. Fifteen minutes later, a view with `@proof_required` shows a page that asks for
the password, or for what a feature adds to `site.proof_methods`. The page carries the submitted
fields and posts them, with the proof, to the same address.

https://github.com/OWASP/ASVS/blob/v5.0.0/5.0/en/0x16-V7-Session-Management.md, 7.5.1
"""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import wraps
from typing import ParamSpec, TypeVar, cast

from quart import Blueprint, redirect, render_template, request, url_for
from quart.typing import ResponseReturnValue
from sqlalchemy.ext.asyncio import AsyncSession
from werkzeug.datastructures import MultiDict

from app.extensions import database, site
from app.site import ProofMethod
from app.user import passwords, sessions
from app.user.audit_trail import Event
from app.user.login import (
    current_session,
    lifetime,
    logged_in_user,
    login_required,
    set_login,
)
from app.user.models import User
from quart_upsun.http.redirects import safe_redirect_target
from quart_upsun.policy import audited, declare, no_store
from quart_upsun.security import audit
from quart_upsun.security.limits import Limit, by_account, by_client, rate_limit

P = ParamSpec("P")
T = TypeVar("T")
View = Callable[P, Awaitable[T]]

blueprint = Blueprint("proof", __name__)

PROOF_SECONDS = 15 * 60
PROOF_PREFIX = "proof_"
# New passwords are never written into a page. The form asks for them again after the proof.
NOT_REPEATED = {"current_password", "password", "confirm"}

CONFIRM_LIMIT = Limit("proof-page", 30, 600)
# Attempts per account: from one client, and from all clients together.
CLIENT_PROOF_LIMIT = Limit("proofs", 10, 300)
ACCOUNT_PROOF_LIMIT = Limit("all-proofs", 50, 1500)

WRONG = "That is not correct. Try again."


def proof_required(view: View[P, T]) -> View[P, T]:
    """Require a proof of identity within the last 15 minutes. Place it under `@login_required`."""
    return _require(view, lambda user: True)


def proof_required_without_password(view: View[P, T]) -> View[P, T]:
    """Require a recent proof only of users without a password.

    For a view that asks others for their current password itself.
    """
    return _require(view, lambda user: not user.has_password)


def is_proved() -> bool:
    """Tell whether the current user has proved their identity recently."""
    age = datetime.now(UTC) - current_session().proved_at
    return age.total_seconds() < PROOF_SECONDS


async def record_proof() -> None:
    """Record that the current user has just proved their identity.

    The session gets a new cookie, so that a copy of the old one is worth nothing.

    Raises:
        SessionEndedError: the session has ended.
    """
    async with database.write() as session:
        renewed = await sessions.renew_session(
            session,
            current_session().id,
            lifetime=lifetime(current_session().is_persistent),
        )
    set_login(logged_in_user(), renewed)


async def check_password(password: str) -> bool:
    """Return whether the password of the current user is correct. Attempts are limited.

    Raises:
        TooManyRequests: too many attempts.
    """
    return await _attempt(lambda: _verify_password(logged_in_user(), password))


async def _attempt(verify: Callable[[], Awaitable[bool]]) -> bool:
    """Count an attempt of the current user, verify it, and audit it if it failed.

    Raises:
        TooManyRequests: too many attempts.
    """
    user_id = logged_in_user().id
    subject = f"user {user_id} from {by_client()}"
    await CLIENT_PROOF_LIMIT.require(subject)
    await ACCOUNT_PROOF_LIMIT.require(f"user {user_id}")
    if await verify():
        await CLIENT_PROOF_LIMIT.reset(subject)  # typos do not add up
        return True
    async with database.write() as session:
        await audit.record(session, Event.PROOF_FAILED, user_id)
    return False


def _require(view: View[P, T], applies: Callable[[User], bool]) -> View[P, T]:
    @wraps(view)
    async def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
        user = logged_in_user()
        if not applies(user) or is_proved():
            return await view(*args, **kwargs)
        error = None
        if request.method not in {"GET", "HEAD"}:
            form = await request.form
            if any(value for name, value in form.items() if name.startswith(PROOF_PREFIX)):
                if await _attempt(lambda: _verify(user, form)):
                    await record_proof()
                    return await view(*args, **kwargs)
                error = WRONG
        return cast(T, await _render_page(error))

    return declare(guarded, needs_proof=True)


async def _verify(user: User, form: MultiDict[str, str]) -> bool:
    """Return whether the form has a proof of one of the methods."""
    for method in site.proof_methods:
        if method.verify is not None and await method.verify(user, form):
            return True
    return False


async def _render_page(error: str | None) -> ResponseReturnValue:
    """Render the page that asks for a proof. A GET returns to its address after it."""
    here = request.full_path.rstrip("?")
    fields: list[tuple[str, str]] = []
    action, target = here, url_for("account.show")
    if request.method in {"GET", "HEAD"}:
        action, target = url_for("proof.confirm", next=here), here
    else:
        fields = [
            (name, value)
            for name, value in (await request.form).items(multi=True)
            if name not in NOT_REPEATED and not name.startswith(PROOF_PREFIX)
        ]
    async with database.read(exact=True) as session:
        methods = [
            method
            for method in site.proof_methods
            if await method.is_available(session, logged_in_user())
        ]
    page = await render_template(
        "user/proof.html",
        action=action,
        fields=fields,
        methods=methods,
        error=error,
        proof_target=target,
    )
    return page, 403


async def _has_password(session: AsyncSession, user: User) -> bool:
    return user.has_password


async def _verify_password(user: User, password: str) -> bool:
    """Return whether a password is that of the user. A very long one is not hashed."""
    if not password or len(passwords.normalize_password(password)) > passwords.MAX_LENGTH:
        return False
    return await site.verify_password(user.password_hash, password)


async def _verify_password_field(user: User, form: MultiDict[str, str]) -> bool:
    return await _verify_password(user, form.get("proof_password", ""))


PASSWORD = ProofMethod(
    "password",
    _has_password,
    "user/proof_password.html",
    verify=_verify_password_field,
)


@blueprint.post("/account/proof/")
@no_store
@login_required
@proof_required
@rate_limit(CONFIRM_LIMIT, by_account)
@audited(Event.PROOF_FAILED)
async def confirm() -> ResponseReturnValue:
    """Return to the page that needed the proof."""
    target = safe_redirect_target(request.args.get("next"))
    return redirect(target or url_for("account.show"), 303)
