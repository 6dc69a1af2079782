"""Rules that apply to every route, including new ones."""

import inspect
import re
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from quart import Quart
from quart.testing import QuartClient as Client
from werkzeug.routing import Rule

from app.settings import ROOT
from app.user.audit_trail import Event
from quart_upsun.http.headers import SECURITY_HEADERS
from quart_upsun.policy import API, IMMUTABLE, NO_STORE, PUBLIC, RoutePolicy, policy_of
from tests.features.factories import LOGIN_COOKIE, SESSION_COOKIE

# What these tests need from features, in `tests/features/<feature>/routes.py`.
FEATURES: list[Any] = [
    import_module(f"tests.features.{path.parent.name}.routes")
    for path in sorted(Path(__file__).parent.glob("*/routes.py"))
]
GUARDED = {"login", "confirmed", "admin"}
METHODS = {"GET", "POST", "PUT", "PATCH", "DELETE"}
GUIDE = "docs/adding-a-feature.md#3-pages"
# An example of each kind of variable in a URL.
EXAMPLES = {
    **dict.fromkeys(("string", "path", "id", "int"), "1"),
    "float": "1.0",
    "uuid": "00000000-0000-4000-8000-000000000000",
}


def routes(app: Quart) -> list[tuple[Rule, str]]:
    """Return every route with each of its methods."""
    return [
        (rule, method)
        for rule in app.url_map.iter_rules()
        for method in sorted((rule.methods or set()) & METHODS)
    ]


def path_of(rule: Rule) -> str:
    """Return a path that matches the rule. The objects it refers to need not exist."""
    return re.sub(
        r"<(?:(\w+)(?:\([^)]*\))?:)?\w+>", lambda found: EXAMPLES[found[1] or "string"], rule.rule
    )


def policy(app: Quart, rule: Rule) -> RoutePolicy:
    return policy_of(app.view_functions[rule.endpoint])


def login_rule(app: Quart, rule: Rule) -> str | None:
    return policy(app, rule).access


def cache_rule(app: Quart, rule: Rule) -> str | None:
    return policy(app, rule).cache_control


def assert_each_route(app: Quart, missing: Callable[[RoutePolicy, Rule, str], str | None]) -> None:
    """Assert that no route lacks a rule; the message names the views and where to read more.

    Args:
        app: the application.
        missing: says what to add to the view of a route and method, or returns None.
    """
    problems = []
    for rule, method in routes(app):
        if advice := missing(policy(app, rule), rule, method):
            view = inspect.unwrap(app.view_functions[rule.endpoint])
            where = f"{method} {rule.rule} ({view.__module__}.{view.__qualname__})"
            problems.append(f"{where}: {advice}")
    assert not problems, "\n".join([*problems, f"See {GUIDE}."])


def test_every_view_declares_who_may_access_it(app: Quart) -> None:
    def missing(policy: RoutePolicy, rule: Rule, method: str) -> str | None:
        if policy.access in {PUBLIC, API, *GUARDED}:
            return None
        if rule.rule.startswith("/api/"):
            return "add @scope_required(…)"
        return "add @login_required, @confirmed_required, @admin_required or @public"

    assert_each_route(app, missing)


def test_every_view_declares_its_caching(app: Quart) -> None:
    def missing(policy: RoutePolicy, rule: Rule, method: str) -> str | None:
        if policy.cache_control:
            return None
        return "add @no_store, or @cache_public(seconds) if the response is the same for everybody"

    assert_each_route(app, missing)


def test_every_view_has_a_rate_limit_or_a_reason(app: Quart) -> None:
    def missing(policy: RoutePolicy, rule: Rule, method: str) -> str | None:
        if method != "GET":
            return None if policy.limit else "add @rate_limit(Limit(…), by_account)"
        # A partial limit does not cover all requests, so the reason is still needed.
        is_limited = policy.limit is not None and not policy.is_limit_partial
        if is_limited == bool(policy.no_limit_reason):
            return 'add either @rate_limit(Limit(…), by_account) or @no_rate_limit("reason")'
        return None

    assert_each_route(app, missing)


def test_every_change_is_audited_or_has_a_reason(app: Quart) -> None:
    def missing(policy: RoutePolicy, rule: Rule, method: str) -> str | None:
        if method == "GET":
            return None
        if bool(policy.audit_events) == bool(policy.no_audit_reason):
            return 'add either @audited(Event.…) or @not_audited("reason")'
        if unknown := {*policy.audit_events} - {*Event}:
            return f"add {', '.join(sorted(unknown))} to `Event` in app/user/audit_trail.py"
        return None

    assert_each_route(app, missing)


def test_numbers_in_urls_are_limited(app: Quart) -> None:
    """A number that is out of range for the database would be a 500."""

    def missing(policy: RoutePolicy, rule: Rule, method: str) -> str | None:
        if not re.search(r"<int(\((?!.*\bmax=)[^)]*\))?:", rule.rule):
            return None
        return "use <id:…> instead of <int:…>, so that a number of 20 digits is a 404"

    assert_each_route(app, missing)


def test_the_guide_has_the_section_that_messages_name() -> None:
    page, _, anchor = GUIDE.partition("#")
    headings = re.findall(r"^## (.+)$", (ROOT / page).read_text(), re.MULTILINE)
    assert anchor in {each.lower().replace(".", "").replace(" ", "-") for each in headings}


def test_rate_limits_have_unique_names(app: Quart) -> None:
    found = [policy_of(view).limit for view in app.view_functions.values()]
    limits = {limit for limit in found if limit is not None}
    assert len({limit.name for limit in limits}) == len(limits)


def test_private_responses_are_not_stored(app: Quart) -> None:
    def missing(policy: RoutePolicy, rule: Rule, method: str) -> str | None:
        is_private = method != "GET" or policy.access in {API, *GUARDED}
        if is_private and policy.cache_control not in {None, NO_STORE}:
            return "use @no_store, because the response depends on the user"
        return None

    assert_each_route(app, missing)


async def test_every_response_has_security_headers(app: Quart, client: Client) -> None:
    """Includes errors and redirects."""
    for path, method in [
        # A view without a cache rule fails another test.
        *((path_of(rule), method) for rule, method in routes(app) if cache_rule(app, rule)),
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
        and cache_rule(app, rule) not in {None, NO_STORE, IMMUTABLE}
    ]
    assert {"/", "/about/", "/login/", "/register/"} <= set(shared)
    for feature in FEATURES:
        assert set(shared) >= feature.SHARED
    for path in shared:
        stranger = await client.get(path)
        assert stranger.headers["Cache-Control"].startswith("public, max-age=0, s-maxage="), path
        assert "Cookie" in stranger.vary
        for name in (LOGIN_COOKIE, SESSION_COOKIE):
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
    declared = [each for each in routes(app) if login_rule(app, each[0])]
    found = [each for each in declared if each[0].rule.startswith("/api/")]
    for rule, _ in declared:
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


def test_login_stays_open_during_maintenance(app: Quart) -> None:
    """Otherwise, an administrator who needs this page to log in could not."""
    assert_each_route(
        app,
        lambda found, rule, method: (
            "add @always_open"
            if rule.rule.startswith("/login/") and not found.is_always_open
            else None
        ),
    )
