"""The `Cache-Control` header, from the view's policy and the use of personal cookies."""

from quart import Response, current_app, session
from quart.globals import request_ctx

from quart_upsun.policy import IMMUTABLE, NO_STORE, OWN_CACHE_CONTROL, policy_of


def cache_control(response: Response) -> str:
    """Return the `Cache-Control` header of a response.

    Errors, and responses that set a cookie or depend on one, are `private, no-store`.
    """
    incoming = request_ctx.request  # each use of the proxy `request` would look for it again
    view = current_app.view_functions.get(incoming.endpoint or "")
    rule = policy_of(view).cache_control or NO_STORE
    if rule == OWN_CACHE_CONTROL:
        return _own_cache_control(response)
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


def _own_cache_control(response: Response) -> str:
    """Return the header that the view has set, without shared caching of personal responses."""
    headers, own = response.headers, response.cache_control
    if response.status_code >= 400 or "Cache-Control" not in headers:
        return NO_STORE
    if own.private is not None or own.no_store:
        return headers["Cache-Control"]
    cookies, config = request_ctx.request.cookies, current_app.config
    is_personal = (
        "Set-Cookie" in headers
        or "Cookie" in response.vary
        or config["SESSION_COOKIE_NAME"] in cookies
        or config["LOGIN_COOKIE_NAME"] in cookies
    )
    if is_personal:
        own.private, own.public, own.s_maxage = True, False, None
    response.vary.add("Cookie")
    return headers["Cache-Control"]
