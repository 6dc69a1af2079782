"""For a mounted Flask application with Flask-Login: take over the login of this application.

Call `use_login` in the factory of the Flask application. It imports nothing of this application, so
the Flask application can still run on its own.
"""

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote

from flask import Flask, g, redirect, request, session
from werkzeug.wrappers import Response

from quart_upsun.legacy.login import LOGIN, MountedLogin


def use_login(
    app: Flask,
    load_user: Callable[[str], object | None],
    *,
    login_url: str = "/login/",
) -> None:
    """Let the login of this application decide who is logged in to a Flask application.

    On each request, Flask-Login gets the user whose login this application has verified. Logging in
    or out here therefore takes effect there, and so does a session that was revoked, for instance
    by a new password. With the argument `log_out` of `mount_wsgi`, `logout_user()` also logs out
    here. An application that is not mounted is not affected.

    Args:
        app: the Flask application, on which Flask-Login is initialized.
        load_user: the function that is registered with `@login_manager.user_loader`. It returns
            the user of an id, or None.
        login_url: the login page of this application. Pages with `@login_required` redirect to it.

    Raises:
        TypeError: Flask-Login is not initialized.
    """
    from flask_login import current_user, login_user, logout_user, user_logged_out

    manager: Any = getattr(app, "login_manager", None)
    if manager is None:
        raise TypeError(
            "use_login() requires Flask-Login. Call login_manager.init_app(app) before it."
        )
    show_login_page = manager.unauthorized

    def follow_login() -> None:
        login = mounted_login()
        if login is None or request.endpoint in {None, "static"}:
            return
        g.is_following_login = True
        try:
            if login.user_id is None:
                if current_user.is_authenticated:
                    logout_user()
            elif str(session.get("_user_id")) != login.user_id or not current_user.is_authenticated:
                user = load_user(login.user_id)
                # An inactive user is not logged in, and must not keep another one's session.
                if user is None or not login_user(user):
                    logout_user()
        finally:
            g.is_following_login = False

    def log_out_of_both(sender: Flask, **_: object) -> None:
        login = mounted_login()
        if login is not None and login.user_id is not None and not g.get("is_following_login"):
            login.log_out()

    def redirect_to_login() -> Response:
        if mounted_login() is None:
            page: Response = show_login_page()
            return page
        target = (request.script_root + request.full_path).rstrip("?")
        return redirect(f"{login_url}?next={quote(target, safe='/')}", 303)

    # Before the hooks of the application, which may use the user.
    app.before_request_funcs.setdefault(None, []).insert(0, follow_login)
    manager.unauthorized_handler(redirect_to_login)
    user_logged_out.connect(log_out_of_both, app, weak=False)


def mounted_login() -> MountedLogin | None:
    """Return this application's login of the current Flask request; None without a mount."""
    login: MountedLogin | None = request.environ.get(LOGIN)
    return login


def mounted_session() -> Mapping[str, Any]:
    """Return this application's session, read-only; empty without a mount or a session."""
    login = mounted_login()
    return login.session if login is not None else {}
