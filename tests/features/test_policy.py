"""Rules that apply to every route, including new ones."""

import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from quart import Quart
from quart.testing import QuartClient as Client
from werkzeug.routing import Rule

from app.user.audit_trail import Event
from quart_upsun.http.headers import SECURITY_HEADERS
from quart_upsun.policy import API, IMMUTABLE, NO_STORE, PUBLIC, policy_of

# What these tests need from features, in `tests/features/<feature>/routes.py`.
FEATURES: list[Any] = [
    import_module(f"tests.features.{path.parent.name}.routes")
    for path in sorted(Path(__file__).parent.glob("*/routes.py"))
]
GUARDED = {"login", "confirmed", "admin"}
METHODS = {"GET", "POST", "PUT", "PATCH", "DELETE"}


def routes(app: Quart) -> list[tuple[Rule, str]]:
    """Return every route with each of its methods."""
    return [
        (rule, method)
        for rule in app.url_map.iter_rules()
        for method in sorted((rule.methods or set()) & METHODS)
    ]


def path_of(rule: Rule) -> str:
    """Return a path that matches the rule. The objects it refers to need not exist."""
    path = rule.rule
    for name in rule.arguments:
        path = re.sub(rf"<((path|id):)?{name}>", "1", path)
    assert "<" not in path, f"{rule}: add this converter to path_of"
    return path


def login_rule(app: Quart, rule: Rule) -> str | None:
    return policy_of(app.view_functions[rule.endpoint]).access


def cache_rule(app: Quart, rule: Rule) -> str | None:
    return policy_of(app.view_functions[rule.endpoint]).cache_control


def test_every_view_declares_access_and_cache_rules(app: Quart) -> None:
    for rule, _ in routes(app):
        assert login_rule(app, rule) in {PUBLIC, API, *GUARDED}, f"{rule}: no login rule"
        assert cache_rule(app, rule), f"{rule}: no cache rule"


def test_every_change_has_rate_limit_and_audit_events(app: Quart) -> None:
    for rule, method in routes(app):
        if method != "GET":
            policy = policy_of(app.view_functions[rule.endpoint])
            assert policy.limit, f"{rule}: no limit"
            is_audited = bool(policy.audit_events)
            assert is_audited != bool(policy.no_audit_reason), (
                f"{rule}: declare its audit events or why it has none"
            )
            assert {*policy.audit_events} <= {*Event}, rule


def test_every_read_has_rate_limit_or_reason(app: Quart) -> None:
    for rule, method in routes(app):
        if method == "GET":
            policy = policy_of(app.view_functions[rule.endpoint])
            # A partial limit does not cover all requests, so the reason is still needed.
            is_limited = policy.limit is not None and not policy.is_limit_partial
            assert is_limited != bool(policy.no_limit_reason), (
                f"{rule}: declare a rate limit, or a reason to have none"
            )


def test_rate_limits_have_unique_names(app: Quart) -> None:
    found = [policy_of(view).limit for view in app.view_functions.values()]
    limits = {limit for limit in found if limit is not None}
    assert len({limit.name for limit in limits}) == len(limits)


def test_private_responses_are_not_stored(app: Quart) -> None:
    for rule, method in routes(app):
        if method != "GET" or login_rule(app, rule) in {API, *GUARDED}:
            assert cache_rule(app, rule) == NO_STORE, rule


async def test_every_response_has_security_headers(app: Quart, client: Client) -> None:
    """Includes errors and redirects."""
    for path, method in [
        *((path_of(rule), method) for rule, method in routes(app)),
        ("/nowhere/", "GET"),
        ("/about", "GET"),
        ("/", "DELETE"),
        ("/", "OPTIONS"),
    ]:
        response = await client.open(path, method=method)
        assert response.status_code < 500, (method, path)
        for name, value in SECURITY_HEADERS.items():
            assert response.headers[name] == value, (method, path)
        assert response.headers["Cache-Control"], (method, path)
        assert response.headers["X-Request-ID"], (method, path)


async def test_anonymous_pages_set_no_cookie(app: Quart, client: Client) -> None:
    for rule, method in routes(app):
        if method == "GET":
            response = await client.get(path_of(rule))
            assert "Set-Cookie" not in response.headers, rule


async def test_cached_pages_are_private_for_requests_with_cookies(
    app: Quart, client: Client
) -> None:
    for feature in FEATURES:
        await feature.prepare(app)
    shared = [
        path_of(rule)
        for rule, method in routes(app)
        if method == "GET"
        and rule.endpoint != "static"
        and cache_rule(app, rule) not in {NO_STORE, IMMUTABLE}
    ]
    assert {"/", "/about/", "/login/", "/register/"} <= set(shared)
    for feature in FEATURES:
        assert set(shared) >= feature.SHARED
    for path in shared:
        stranger = await client.get(path)
        assert stranger.headers["Cache-Control"].startswith("public, max-age=0, s-maxage="), path
        assert "Cookie" in stranger.vary
        for name in ("login", "session"):
            known = await client.get(path, headers={"Cookie": f"{name}=anything"})
            assert known.headers["Cache-Control"] == NO_STORE, (path, name)


async def test_protected_pages_redirect_to_login(app: Quart, client: Client) -> None:
    for rule, method in routes(app):
        if login_rule(app, rule) in GUARDED:
            response = await client.open(path_of(rule), method=method)
            if method == "GET":
                assert response.status_code == 303
                assert response.location == f"/login/?next={path_of(rule)}", rule
            else:
                assert response.status_code == 401


async def test_every_api_route_requires_authentication(app: Quart, client: Client) -> None:
    found = [each for each in routes(app) if each[0].rule.startswith("/api/")]
    assert found
    for rule, _ in routes(app):
        assert (login_rule(app, rule) == API) == rule.rule.startswith("/api/"), rule
    for rule, method in found:
        response = await client.open(path_of(rule), method=method)
        assert response.status_code == 401, (rule, method)
        assert response.mimetype == "application/problem+json"
        assert response.headers["WWW-Authenticate"].startswith("Bearer ")


async def test_cross_site_requests_are_rejected(app: Quart, client: Client) -> None:
    for rule, method in routes(app):
        if method != "GET":
            for headers in (
                {"Sec-Fetch-Site": "cross-site"},
                {"Sec-Fetch-Site": "same-site"},
                {"Origin": "https://evil.example"},
            ):
                response = await client.open(path_of(rule), method=method, headers=headers)
                assert response.status_code == 403, (rule, headers)


async def test_compressed_request_bodies_are_rejected(app: Quart, client: Client) -> None:
    for rule, method in routes(app):
        if method != "GET":
            response = await client.open(
                path_of(rule), method=method, headers={"Content-Encoding": "gzip"}, data=b"\x1f\x8b"
            )
            assert response.status_code == 415, (rule, method)
            assert response.headers["Accept-Encoding"] == "identity"
            assert "Content-Encoding" in await response.get_data(as_text=True)


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
async def test_health_checks_respond_on_any_host(client: Client, path: str) -> None:
    response = await client.get(path, headers={"Host": "10.0.0.7:1234"})
    assert response.status_code == 200
    assert response.headers["Cache-Control"] == NO_STORE


async def test_redirects_do_not_contain_the_host(client: Client) -> None:
    response = await client.get("/about", headers={"Host": "evil.example"})
    assert response.status_code == 308
    assert response.location == "/about/"


async def test_requests_run_no_synchronous_code(
    app: Quart, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A synchronous view, hook or context processor would need a thread per request."""
    found: list[object] = []
    monkeypatch.setattr(app, "sync_to_async", found.append)
    for rule, method in routes(app):
        await client.open(path_of(rule), method=method)
    assert found == []
