"""The `Cache-Control` header, from the view's policy and the use of personal cookies."""

from quart import Response, current_app, session
from quart.globals import request_ctx

from quart_upsun.policy import IMMUTABLE, NO_STORE, policy_of


def cache_control(response: Response) -> str:
    """Return the `Cache-Control` header of a response.

    Errors, and responses that set a cookie or depend on one, are `private, no-store`.
    """
    incoming = request_ctx.request  # each use of the proxy `request` would look for it again
    view = current_app.view_functions.get(incoming.endpoint or "")
    rule = policy_of(view).cache_control or NO_STORE
    if rule == NO_STORE or response.status_code not in {200, 304}:
        return NO_STORE
    headers = response.headers
    if rule == IMMUTABLE and "Set-Cookie" not in headers:
        return rule
    # The page depends on these cookies. The Upsun router bypasses its cache for requests with
    # cookies, but other caches need to be told.
    if "Vary" in headers:
        response.vary.add("Cookie")
    else:
        headers["Vary"] = "Cookie"
    cookies, config = incoming.cookies, current_app.config
    if config["SESSION_COOKIE_NAME"] in cookies or config["LOGIN_COOKIE_NAME"] in cookies:
        return NO_STORE
    if session.accessed or session.modified or "Set-Cookie" in headers:
        return NO_STORE
    return rule
