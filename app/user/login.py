"""Who is asking: the login cookie, the current user, and the rule each view declares."""

from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar, cast

from quart import Quart, abort, current_app, g, redirect, request, url_for
from quart_auth import Action, AuthUser, QuartAuth

from app.database import read
from app.user import accounts
from app.user.models import User

P = ParamSpec("P")
T = TypeVar("T")


def init_app(app: Quart) -> None:
    # Not as quart-auth's singleton: that adds a synchronous context processor, and with it a
    # thread to every page.
    QuartAuth(app, singleton=False)
    app.before_request(load_user)


def everybody(view: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
    """Declare that a view asks for no login."""
    view.login = "everybody"  # type: ignore[attr-defined]
    return view


def members_only(view: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
    """Send whoever is not logged in to the login page, and back here afterwards."""

    @wraps(view)
    async def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
        if current_user() is None:
            if request.method not in {"GET", "HEAD"}:
                abort(401)
            return cast(T, redirect(url_for("user.login", next=request.full_path.rstrip("?")), 303))
        return await view(*args, **kwargs)

    guarded.login = "members"  # type: ignore[attr-defined]
    return guarded


def current_user() -> User | None:
    """Return the user who is logged in."""
    return cast(User | None, g.get("user"))


def log_in(user: User) -> None:
    """Set the login cookie with the answer to this request."""
    _auth().login_user(AuthUser(f"{user.id}.{user.session_version}", action=Action.WRITE_PERMANENT))
    g.user = user


def log_out() -> None:
    """Delete the login cookie with the answer to this request."""
    _auth().logout_user()
    g.user = None


async def load_user() -> None:
    """Find the user of the login cookie: one query, and none for who has no cookie."""
    if current_app.config["QUART_AUTH_COOKIE_NAME"] not in request.cookies:
        return
    if request.endpoint == "static" or request.blueprint == "health":
        return
    user_id, _, version = (_auth().load_user().auth_id or "").partition(".")
    if user_id.isdecimal() and version.isdecimal():
        async with read() as session:
            g.user = await accounts.by_session(session, int(user_id), int(version))
    if current_user() is None:
        log_out()  # forged, expired or ended elsewhere: without it pages can be cached again


def _auth() -> QuartAuth:
    extensions: list[Any] = current_app.extensions["QUART_AUTH"]
    return cast(QuartAuth, extensions[0])
