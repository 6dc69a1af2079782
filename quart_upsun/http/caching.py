"""The `Cache-Control` header, from the view's policy and the use of personal cookies."""

from collections.abc import Iterable

from quart import Response, current_app, request, session

from quart_upsun.policy import IMMUTABLE, NO_STORE, policy_of


def personal_cookie_names() -> Iterable[str]:
    """Return the names of the cookies that make a response personal."""
    return (
        current_app.config["SESSION_COOKIE_NAME"],
        current_app.config["LOGIN_COOKIE_NAME"],
    )


def cache_control(response: Response) -> str:
    """Return the `Cache-Control` header of a response.

    Errors, and responses that set a cookie or depend on one, are `private, no-store`.
    """
    view = current_app.view_functions.get(request.endpoint or "")
    rule = policy_of(view).cache_control or NO_STORE
    if rule == NO_STORE or response.status_code not in {200, 304}:
        return NO_STORE
    if rule == IMMUTABLE and "Set-Cookie" not in response.headers:
        return rule
    # The page depends on these cookies. The Upsun router bypasses its cache for requests with
    # cookies, but other caches need to be told.
    response.vary.add("Cookie")
    personal = any(name in request.cookies for name in personal_cookie_names())
    if personal or session.accessed or session.modified or "Set-Cookie" in response.headers:
        return NO_STORE
    return rule
