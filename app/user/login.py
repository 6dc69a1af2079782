"""The login cookie, the current user, and decorators that require a login."""

import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
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
from quart.typing import ResponseTypes
from quart_auth import Action, AuthUser, QuartAuth
from sqlalchemy.ext.asyncio import AsyncSession

from app.extensions import database
from app.user import sessions
from app.user.accounts import SessionEndedError
from app.user.audit_trail import Event
from app.user.models import User
from app.user.sessions import CurrentSession
from quart_upsun.database import ReadOnlyDatabaseError
from quart_upsun.http import credentials
from quart_upsun.identity import session_user, set_session_user
from quart_upsun.policy import declare
from quart_upsun.security import audit

P = ParamSpec("P")
T = TypeVar("T")
View = Callable[P, Awaitable[T]]

# The last part of the cookie: whether the login persists after the browser is closed.
PERSISTENT, BROWSER_SESSION = "kept", "session"


class AnonymousUser:
    """The `current_user` of templates if nobody is logged in, as Flask-Login has it.

    Unlike Flask-Login's, it is false.
    """

    id = username = email = pending_email = None
    is_authenticated = is_active = is_administrator = is_admin = False
    is_anonymous = True

    def __bool__(self) -> bool:
        return False

    def get_id(self) -> None:
        return None


ANONYMOUS = AnonymousUser()


class CookieAuth(QuartAuth):
    """Verifies the login cookie, which is signed with the time of the login.

    The format is `<user id>.<session version>.<session id>.kept`. A login that ends with the
    browser session has `session` instead of `kept`.
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
        age = time.time() - issued
        return auth_id if 0 <= age <= lifetime(is_persistent).total_seconds() else None

    async def after_request(self, response: Response) -> Response:
        """Set or delete the cookie, if the view has logged a user in or out."""
        return (
            await super().after_request(response) if hasattr(g, self.attribute_name) else response
        )


def init_app(app: Quart) -> None:
    CookieAuth(app)
    app.before_request(load_user)
    app.register_error_handler(SessionEndedError, session_ended)
    app.extensions["quart_upsun"].switches.is_exempt = is_by_administrator
    app.context_processor(template_context)


async def template_context() -> dict[str, Any]:
    """Return the current user, and whether the navigation bar has the login form.

    Anonymous users see it on every page except the login page, which has its own form.
    """
    user = current_user()
    return {
        "current_user": user or ANONYMOUS,
        "login_bar": user is None and request.path != "/login/",
    }


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


def lifetime(is_persistent: bool) -> timedelta:
    """Return how long a login cookie is valid."""
    name = "QUART_AUTH_DURATION" if is_persistent else "SESSION_SECONDS"
    return timedelta(seconds=current_app.config[name])


def current_session() -> CurrentSession:
    """Return the session of the current user in a view that requires a login."""
    return cast(CurrentSession, g.login_session)


async def log_in(user: User, *, remember: bool) -> None:
    """Log in: create a session, and set the cookie in the response.

    It replaces the session of this request, if there is one.

    Args:
        user: the user to log in, as loaded when they proved their identity.
        remember: whether the login persists after the browser is closed.

    Raises:
        SessionEndedError: all sessions of the user were ended in the meantime.
    """
    async with database.write() as session:
        if current_user() is not None:
            await sessions.delete_session(session, current_session().id)
        created = await _create_session(session, user, is_persistent=remember)
        await audit.record(session, Event.LOGGED_IN, user.id)
    _clear_session()
    set_login(user, created)


async def renew_login(user: User) -> None:
    """Renew the login of this request after all sessions of the user were ended.

    Raises:
        SessionEndedError: they were ended once more.
    """
    async with database.write() as session:
        created = await _create_session(
            session, user, is_persistent=current_session().is_persistent
        )
    _clear_session()
    set_login(user, created)


def set_login(user: User, current: CurrentSession) -> None:
    """Make `user` the current user, and set the cookie of a session that is new or renewed."""
    kind, action = (
        (PERSISTENT, Action.WRITE_PERMANENT)
        if current.is_persistent
        else (BROWSER_SESSION, Action.WRITE)
    )
    auth_id = f"{user.id}.{user.session_version}.{current.id}.{kind}"
    _auth().login_user(AuthUser(auth_id, action=action))
    set_session_user(user)
    g.login_session = current


async def log_out() -> None:
    """Log out: end the session of the current user, if there is one, and delete the cookie."""
    user = current_user()
    if user is not None:
        async with database.write() as session:
            await sessions.delete_session(session, current_session().id)
            await audit.record(session, Event.LOGGED_OUT, user.id)
    forget_login()


def forget_login() -> None:
    """Delete the login cookie and the data of the browser session, when the session has ended."""
    _clear_session()
    _auth().logout_user()
    set_session_user(None)


async def session_ended(error: Exception) -> ResponseTypes:
    """Redirect to the login page if the session ended during the request."""
    forget_login()
    return redirect(url_for("user.login"), 303)


async def load_user() -> None:
    """Load the user of the login cookie with one query; without a cookie, with none."""
    if current_app.config["QUART_AUTH_COOKIE_NAME"] not in request.cookies:
        return
    if request.endpoint == "static" or request.blueprint == "health":
        return
    if credentials.has_token(request):
        return  # the token alone authenticates the request
    match (_auth().load_user().auth_id or "").split("."):
        case [*numbers, _] if len(numbers) == 3 and all(each.isdecimal() for each in numbers):
            user_id, version, session_id = map(int, numbers)
            async with database.direct(exact=True) as connection:
                found = await sessions.get_logged_in(
                    connection, session_id=session_id, user_id=user_id, version=version
                )
            if found is not None:
                set_session_user(found.user)
                g.login_session = found.session
                if found.session.is_use_due:
                    await _record_use(found.session)
    if current_user() is None:
        forget_login()  # the cookie is invalid or expired; without it, pages are cacheable again


async def _record_use(current: CurrentSession) -> None:
    """Update when the session was last seen: one round trip every ten minutes."""
    if database.is_read_only:
        return
    with suppress(ReadOnlyDatabaseError):  # pages are still served
        async with database.read(exact=True) as session:  # AUTOCOMMIT
            await sessions.record_use(session, current.id, request.remote_addr)


async def _create_session(
    session: AsyncSession, user: User, *, is_persistent: bool
) -> CurrentSession:
    return await sessions.create_session(
        session,
        user,
        is_persistent=is_persistent,
        lifetime=lifetime(is_persistent),
        client=request.remote_addr,
        user_agent=request.headers.get("User-Agent", ""),
    )


async def is_by_administrator() -> bool:
    """Tell whether an administrator is logged in, before `load_user` has run."""
    await load_user()
    user = current_user()
    return user is not None and user.is_administrator


def _clear_session() -> None:
    """Remove the session data of the previous user."""
    if session:
        session.clear()


def _auth() -> QuartAuth:
    extensions: list[Any] = current_app.extensions["QUART_AUTH"]
    return cast(QuartAuth, extensions[0])
