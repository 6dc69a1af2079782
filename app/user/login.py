"""The login cookie, the current user, and decorators that require a login."""

import time
from collections.abc import Awaitable, Callable
from functools import cached_property, lru_cache, wraps
from typing import Any, ParamSpec, TypeVar, cast

from itsdangerous import BadSignature, URLSafeTimedSerializer
from quart import (
    Quart,
    Response,
    abort,
    current_app,
    g,
    redirect,
    render_template,
    request,
    session,
    url_for,
)
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

# The last part of the cookie: whether the login persists after the browser is closed.
PERSISTENT, BROWSER_SESSION = "kept", "session"


class CookieAuth(QuartAuth):
    """Verifies the login cookie, which is signed with the time of the login.

    The format is `<user id>.<session version>.kept`. A login that ends with the browser session has
    `session` instead of `kept`.
    """

    MAX_VERIFIED = 1024

    def __init__(self, app: Quart) -> None:
        # The singleton of quart-auth adds a synchronous context processor, which runs in a thread
        # for every page.
        super().__init__(app, singleton=False)
        # A browser sends the same cookie again and again. Its age is checked each time.
        self._verify = lru_cache(self.MAX_VERIFIED)(self._verify_signature)

    @cached_property
    def _serializer(self) -> URLSafeTimedSerializer:
        # quart-auth would make one for each request.
        fallbacks = current_app.config.get("SECRET_KEY_FALLBACKS") or ()
        # itsdangerous signs with the last key, and verifies with all of them.
        return self.serializer_class([*fallbacks, str(current_app.secret_key)], str(self.salt))

    def _verify_signature(self, token: str) -> tuple[str, float]:
        auth_id, issued = self._serializer.loads(token, return_timestamp=True)
        return auth_id, issued.timestamp()

    def load_token(self, token: str, app: Quart | None = None) -> str | None:
        """Return the content of a valid token, or None."""
        try:
            auth_id, issued = self._verify(token)
        except BadSignature:
            return None
        is_persistent = auth_id.endswith(f".{PERSISTENT}")
        lifetime = cast(
            int, self.duration if is_persistent else current_app.config["SESSION_SECONDS"]
        )
        return auth_id if 0 <= time.time() - issued <= lifetime else None

    async def after_request(self, response: Response) -> Response:
        """Set or delete the cookie, if the view has logged somebody in or out."""
        return (
            await super().after_request(response) if hasattr(g, self.attribute_name) else response
        )


def init_app(app: Quart) -> None:
    CookieAuth(app)
    app.before_request(load_user)
    app.context_processor(template_context)


async def template_context() -> dict[str, Any]:
    """Return the current user, and whether the navigation bar has the login form.

    Anonymous users see it on every page except the login page, which has its own form.
    """
    user = current_user()
    return {"current_user": user, "login_bar": user is None and request.path != "/login/"}


def login_required(view: View[P, T]) -> View[P, T]:
    """Require a login; redirect anonymous users to the login page and back."""
    return _require(view, "login", lambda user: None)


def confirmed_required(view: View[P, T]) -> View[P, T]:
    """Require a confirmed email address, for views that send email to others."""
    return _require(view, "confirmed", lambda user: None if user.email else "unconfirmed")


def admin_required(view: View[P, T]) -> View[P, T]:
    """Require an administrator; other users get a 404."""
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
    """Return the current user, or None."""
    return cast(User | None, session_user())


def logged_in_user() -> User:
    """Return the current user in a view that requires a login."""
    return cast(User, session_user())


def log_in(user: User, *, remember: bool) -> None:
    """Log in, with a cookie in the response.

    Args:
        user: the user to log in.
        remember: whether the login persists after the browser is closed.
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
    """Renew the login of this request after all sessions of the user were ended."""
    log_in(user, remember=g.is_login_persistent)


def log_out() -> None:
    """Log out: delete the login cookie and the session."""
    _clear_session()
    _auth().logout_user()
    set_session_user(None)


async def load_user() -> None:
    """Load the user of the login cookie with one query; without a cookie, with none."""
    if current_app.config["QUART_AUTH_COOKIE_NAME"] not in request.cookies:
        return
    if request.endpoint == "static" or request.blueprint == "health":
        return
    if credentials.has_token(request):
        return  # the token alone authenticates the request
    match (_auth().load_user().auth_id or "").split("."):
        case [user_id, version, kind] if user_id.isdecimal() and version.isdecimal():
            async with database.direct() as connection:
                set_session_user(
                    await accounts.get_user_by_session(connection, int(user_id), int(version))
                )
            g.is_login_persistent = kind == PERSISTENT
    if current_user() is None:
        log_out()  # the cookie is invalid or expired; without it, pages are cacheable again


def _clear_session() -> None:
    """Remove the session data of the previous user."""
    if session:
        session.clear()


def _auth() -> QuartAuth:
    extensions: list[Any] = current_app.extensions["QUART_AUTH"]
    return cast(QuartAuth, extensions[0])
