"""Who is asking: the login cookie, the current user, and the rule each view declares."""

import time
from collections.abc import Awaitable, Callable
from functools import cached_property, wraps
from typing import Any, ParamSpec, TypeVar, cast

from itsdangerous import BadSignature, SignatureExpired
from quart import Quart, abort, current_app, g, redirect, render_template, request, session, url_for
from quart_auth import Action, AuthUser, QuartAuth

from app.extensions import database
from app.user import accounts
from app.user.models import User
from quart_upsun.http import credentials
from quart_upsun.identity import session_user, set_session_user
from quart_upsun.policy import declare

P = ParamSpec("P")
T = TypeVar("T")
View = Callable[P, Awaitable[T]]

# The last part of the cookie: whether the login outlives the browser.
PERSISTENT, BROWSER_SESSION = "kept", "session"


class LoginSerializer(QuartAuth.serializer_class):  # type: ignore[misc, valid-type]
    """Reads the login cookie, which is signed with the time of the login.

    `<user>.<session version>.kept`, or with `session` for a login that is not kept.
    """

    def loads(self, token: str, **options: Any) -> Any:
        auth_id, issued = super().loads(token, return_timestamp=True, **options)
        lifetime = current_app.config["SESSION_SECONDS"]
        if not auth_id.endswith(f".{PERSISTENT}") and time.time() > issued.timestamp() + lifetime:
            raise SignatureExpired("the session is over")
        return auth_id


class CookieAuth(QuartAuth):
    """quart-auth, which would make a signer for each request; the keys do not change."""

    serializer_class = LoginSerializer

    @cached_property
    def _serializer(self) -> LoginSerializer:
        fallbacks = current_app.config.get("SECRET_KEY_FALLBACKS") or ()
        # itsdangerous signs with the last key, and verifies with all of them.
        return LoginSerializer([*fallbacks, current_app.secret_key], self.salt)

    def load_token(self, token: str, app: Quart | None = None) -> str | None:
        """Return what a valid token contains; None for any other."""
        try:
            auth_id: str = self._serializer.loads(token, max_age=self.duration)
        except BadSignature:  # or expired
            return None
        return auth_id


def init_app(app: Quart) -> None:
    # Not as quart-auth's singleton: that adds a synchronous context processor, and with it a
    # thread to every page.
    CookieAuth(app, singleton=False)
    app.before_request(load_user)
    app.context_processor(template_context)


async def template_context() -> dict[str, Any]:
    """Return who is logged in, and whether the navigation bar has the login form.

    It has for visitors, except on the login page, where the form is the page's own.
    """
    user = current_user()
    return {"current_user": user, "login_bar": user is None and request.path != "/login/"}


def login_required(view: View[P, T]) -> View[P, T]:
    """Send whoever is not logged in to the login page, and back here afterwards."""
    return _require(view, "login", lambda user: None)


def confirmed_required(view: View[P, T]) -> View[P, T]:
    """Let members in whose address is confirmed: for what sends mail to others."""
    return _require(view, "confirmed", lambda user: None if user.email else "unconfirmed")


def admin_required(view: View[P, T]) -> View[P, T]:
    """Let administrators in; to other members the page is not there."""
    return _require(view, "admin", lambda user: None if user.is_administrator else "absent")


def _require(
    view: View[P, T], rule: str, missing_requirement: Callable[[User], str | None]
) -> View[P, T]:
    @wraps(view)
    async def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
        user = current_user()
        if user is None:
            if request.method not in {"GET", "HEAD"}:
                abort(401)
            return cast(T, redirect(url_for("user.login", next=request.full_path.rstrip("?")), 303))
        match missing_requirement(user):
            case "absent":
                abort(404)
            case "unconfirmed":
                return cast(T, (await render_template("user/unconfirmed.html"), 403))
        return await view(*args, **kwargs)

    return declare(guarded, access=rule)


def current_user() -> User | None:
    """Return the user who is logged in."""
    return cast(User | None, session_user())


def logged_in_user() -> User:
    """Return the user who is logged in, in a view that nobody else reaches."""
    return cast(User, session_user())


def log_in(user: User, *, remember: bool) -> None:
    """Set the login cookie with the answer to this request.

    Args:
        user: who it is.
        keep: whether the login outlives the browser.
    """
    _clear_session()
    kind, action = (
        (PERSISTENT, Action.WRITE_PERMANENT) if remember else (BROWSER_SESSION, Action.WRITE)
    )
    auth_id = f"{user.id}.{user.session_version}.{kind}"
    _auth().login_user(AuthUser(auth_id, action=action))
    set_session_user(user)
    g.is_login_persistent = remember


def renew_login(user: User) -> None:
    """Go on with the login of this request after the user's other sessions were ended."""
    log_in(user, remember=g.is_login_persistent)


def log_out() -> None:
    """Delete the login cookie with the answer to this request."""
    _clear_session()
    _auth().logout_user()
    set_session_user(None)


async def load_user() -> None:
    """Find the user of the login cookie: one query, and none for who has no cookie."""
    if current_app.config["QUART_AUTH_COOKIE_NAME"] not in request.cookies:
        return
    if request.endpoint == "static" or request.blueprint == "health":
        return
    if credentials.has_token(request):
        return  # which alone says who asks: the cookie is not even looked at
    match (_auth().load_user().auth_id or "").split("."):
        case [user_id, version, kind] if user_id.isdecimal() and version.isdecimal():
            async with database.direct() as connection:
                set_session_user(
                    await accounts.get_user_by_session(connection, int(user_id), int(version))
                )
            g.is_login_persistent = kind == PERSISTENT
    if current_user() is None:
        log_out()  # forged, expired or ended elsewhere: without it pages can be cached again


def _clear_session() -> None:
    """Leave nothing of whoever was here before."""
    if session:
        session.clear()


def _auth() -> QuartAuth:
    extensions: list[Any] = current_app.extensions["QUART_AUTH"]
    return cast(QuartAuth, extensions[0])
