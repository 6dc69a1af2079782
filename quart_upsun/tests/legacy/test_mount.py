"""Mounted WSGI applications: requests, responses, and every way to break the rules of WSGI."""

import asyncio
import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import SecretStr
from quart import Quart
from quart.testing import QuartClient as Client

from quart_upsun.database.url import parse_database_url
from quart_upsun.http.bodies import BodyLimit
from quart_upsun.http.headers import SECURITY_HEADERS
from quart_upsun.identity import set_session_user
from quart_upsun.legacy import LOGIN, mount_wsgi
from quart_upsun.legacy.threads import DaemonThreads
from quart_upsun.security import Limit
from quart_upsun.testing.servers import NO_DATABASE, eventually
from quart_upsun.tests.legacy import flask_app
from quart_upsun.tests.sample import create_app
from quart_upsun.tests.sample.settings import Settings
from quart_upsun.web.errors import MESSAGES

Mount = Callable[..., Client]


@pytest.fixture
def settings_without_database() -> Settings:
    return Settings(
        database_url=parse_database_url(NO_DATABASE),
        secret_key=SecretStr("a secret key for tests only"),
        log_level="debug",
    )


@pytest.fixture
def app(settings_without_database: Settings) -> Quart:
    """The sample application without a database, unlike the fixture of the other tests."""
    return create_app(settings_without_database)


@pytest.fixture
def mount(app: Quart) -> Mount:
    """Mount an application at /old, and return a client."""

    def mount_and_return_client(application: Any = flask_app.raw, **options: Any) -> Client:
        defaults = {"path": "/old", "limit": None, "requires_schema": False}
        mount_wsgi(app, application, **{**defaults, **options})
        return app.test_client()  # type: ignore[return-value]

    return mount_and_return_client


async def environ_of(client: Client, path: str, **options: Any) -> dict[str, str]:
    text = await (await client.get(path, **options)).get_data(as_text=True)
    return dict(line.split("=", 1) for line in text.splitlines())


async def test_paths_are_split_at_the_mount(mount: Mount) -> None:
    client = mount()
    for path, rest in (("/old/", "/"), ("/old/a/b", "/a/b"), ("/old//a//", "//a//")):
        environ = await environ_of(client, path)
        assert (environ["SCRIPT_NAME"], environ["PATH_INFO"]) == ("/old", rest)
    response = await client.get("/old?a=b")
    assert (response.status_code, response.headers["Location"]) == (308, "/old/?a=b")
    assert (await client.get("/older")).status_code == 404


async def test_fallback_gets_what_no_route_matches(mount: Mount) -> None:
    client = mount(path=None)
    for path in ("/nowhere", "/about/more", "/users//x/"):
        environ = await environ_of(client, path)
        assert (environ["SCRIPT_NAME"], environ["PATH_INFO"]) == ("", path)
    assert "<h1>About</h1>" in await (await client.get("/about/")).get_data(as_text=True)
    assert (await client.get("/about")).status_code == 308
    # A method that the route does not have.
    assert (await client.post("/about/")).status_code == 200


async def test_client_cannot_forge_the_environment(mount: Mount) -> None:
    headers = {
        "X-Forwarded-Host": "evil.example",
        "X-Forwarded-Proto": "https",
        "X-Forwarded-For": "203.0.113.1",
        "X-Forwarded-Prefix": "/evil",
        "Forwarded": "host=evil.example",
        "Proxy": "evil.example",
        "Remote_User": "admin",
        "X_Real_Ip": "203.0.113.1",
        "X-Passed": "on",
    }
    environ = await environ_of(mount(), "/old/", headers=headers)
    assert environ["HTTP_X_PASSED"] == "on"
    assert {key for key in environ if key.startswith("HTTP_")} <= {
        *("HTTP_HOST", "HTTP_X_PASSED", "HTTP_USER_AGENT", "HTTP_REMOTE_ADDR"),
    }
    assert "REMOTE_USER" not in environ
    assert environ["wsgi.url_scheme"] == "http"


async def test_external_urls_have_the_public_origin(settings_without_database: Settings) -> None:
    settings = settings_without_database.model_copy(
        update={"public_origin": "https://www.example.com:8443"}
    )
    app = create_app(settings)
    mount_wsgi(app, flask_app.create_app(), "/old", limit=None, requires_schema=False)
    response = await app.test_client().get("/old/url", headers={"Host": "evil.example"})
    assert await response.get_data() == b"https://www.example.com:8443/old/url"


async def test_login_is_in_the_environment(app: Quart) -> None:
    class User:
        id = 7
        username = "José"

    seen: list[Any] = []

    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        seen.append(environ)
        environ[LOGIN].log_out()
        start_response("200 OK", [])
        return []

    logged_out: list[bool] = []
    app.before_request(_log_in(User()))
    mount_wsgi(
        *(app, application, "/old"),
        requires_schema=False,
        log_out=lambda: logged_out.append(True),
    )
    await app.test_client().get("/old/")
    assert seen[0][LOGIN].user_id == "7"
    assert seen[0]["REMOTE_USER"].encode("latin1").decode() == "José"
    assert logged_out == [True]


def _log_in(user: Any) -> Callable[[], Any]:
    async def load_user() -> None:
        set_session_user(user)

    return load_user


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("raises", None),
        ("exits", None),
        ("raises-after-start", None),
        ("starts-twice", "start_response was called twice"),
        ("never-starts", "start_response was not called before"),
        ("text", "contains str instead of bytes"),
        ("status", "an invalid status"),
        ("line-break", "contains a line break"),
        ("short", "ended 5 bytes early"),
    ],
)
async def test_failures_get_the_error_page(
    mount: Mount, caplog: pytest.LogCaptureFixture, path: str, reason: str | None
) -> None:
    response = await mount().get(f"/old/{path}")
    page = await response.get_data(as_text=True)
    assert response.status_code == 500
    assert MESSAGES[500] in page
    for name, value in SECURITY_HEADERS.items():
        assert response.headers[name] == value
    (record,) = (each for each in caplog.records if each.levelno >= logging.ERROR)
    logged: Any = record.msg
    assert "secret" not in page
    assert "ValueError('" not in str(logged)
    assert logged["event"] == "mounted application failed"
    if reason:
        assert reason in logged["reason"]
    elif path != "exits":
        assert logged["error"] == "ValueError"
        assert "flask_app.py" in logged["stack"]
        assert "call.py" not in logged["stack"]


async def test_failure_raises_for_the_traceback_page(mount: Mount, app: Quart) -> None:
    client = mount()
    app.debug = True
    page = await (await client.get("/old/raises")).get_data(as_text=True)
    assert "a secret from the request" in page


async def test_legal_oddities_are_served(mount: Mount) -> None:
    client = mount()
    for path, status, body in (
        ("replaces", 418, b"replaced"),
        ("long", 200, b"long"),
        ("writes", 200, b"written, returned"),
    ):
        response = await client.get(f"/old/{path}")
        assert (response.status_code, await response.get_data()) == (status, body)
    response = await client.post("/old/file", data=b"x" * 300_000)
    assert await response.get_data() == b"x" * 300_000
    response = await client.head("/old/about")
    assert response.status_code == 200


async def test_wsgi_errors_go_to_the_log(mount: Mount, caplog: pytest.LogCaptureFixture) -> None:
    response = await mount().get("/old/errors")
    logged: list[Any] = []

    def has_all_lines() -> bool:  # the last one is logged after the response
        logged[:] = [each.msg for each in caplog.records if each.name == "wsgi.errors"]
        return len(logged) == 3

    await eventually(has_all_lines, "log lines")
    assert [each["text"] for each in logged] == ["first line", "second line", "third"]
    assert {each["request_id"] for each in logged} == {response.headers["X-Request-ID"]}


async def test_cookies_stay_apart(mount: Mount, app: Quart) -> None:
    app.config.update(SESSION_COOKIE_NAME="session", LOGIN_COOKIE_NAME="login")
    headers = {"Cookie": "session=a; other=b; login=c; old=d"}
    response = await mount().get("/old/cookies", headers=headers)
    assert await response.get_data() == b"other=b; old=d"
    assert response.headers.getlist("Set-Cookie") == ["old=x"]


async def test_cookies_with_the_same_name_are_rejected(mount: Mount, app: Quart) -> None:
    app.config["SESSION_COOKIE_NAME"] = "session"
    application = flask_app.create_app()
    application.config["SESSION_COOKIE_NAME"] = "session"
    with pytest.raises(ValueError, match=r"a cookie 'session'\. Set SESSION_COOKIE_NAME of"):
        mount(application)


@pytest.mark.parametrize("path", ["old", "//old", "/<old>", "/old?", "/", ""])
async def test_malformed_paths_are_rejected(mount: Mount, path: str) -> None:
    with pytest.raises(ValueError, match="is not a path for a mounted application"):
        mount(path=path)


@pytest.mark.parametrize(
    ("own", "anonymous", "logged_in"),
    [
        ("public, max-age=60", "public, max-age=60", "max-age=60, private"),
        ("no-cache", "no-cache", "no-cache, private"),
        ("private, max-age=5", "private, max-age=5", "private, max-age=5"),
        ("s-maxage=60", "s-maxage=60", "private"),
    ],
)
async def test_own_cache_control_is_kept(
    mount: Mount, app: Quart, own: str, anonymous: str, logged_in: str
) -> None:
    client = mount()
    path = f"/old/cached?{own}".replace(" ", "")
    for cookie, expected in (("other", anonymous), (app.config["LOGIN_COOKIE_NAME"], logged_in)):
        response = await client.get(path, headers={"Cookie": f"{cookie}=x"})
        found = response.headers["Cache-Control"]
        assert set(found.replace(" ", "").split(",")) == set(expected.replace(" ", "").split(","))
    assert (await client.get("/old/")).headers["Cache-Control"] == "private, no-store"
    assert (await client.get("/old/raises")).headers["Cache-Control"] == "private, no-store"


async def test_own_headers_win_over_those_of_the_mount(mount: Mount) -> None:
    client = mount(headers={"Content-Security-Policy": "script-src 'unsafe-inline'"})
    own = await client.get("/old/headers")
    assert own.headers["Content-Security-Policy"] == "default-src 'self'"
    assert "Connection" not in own.headers
    other = await client.get("/old/")
    assert other.headers["Content-Security-Policy"] == "script-src 'unsafe-inline'"
    assert other.headers["X-Frame-Options"] == "DENY"


async def test_cross_site_requests_with_a_token_are_rejected(
    settings_without_database: Settings,
) -> None:
    """A mounted application knows no tokens, and would accept its own cookie."""
    origin = "https://app.example.com"
    app = create_app(settings_without_database.model_copy(update={"cors_origins": origin}))
    mount_wsgi(app, flask_app.raw, limit=None, requires_schema=False)
    headers = {"Origin": origin, "X-API-Key": "x", "Sec-Fetch-Site": "cross-site"}
    response = await app.test_client().post("/api/old", headers=headers)
    assert response.status_code == 403


async def test_body_limit_of_a_mount(mount: Mount, app: Quart) -> None:
    client = mount(body_limit=BodyLimit(size=3_000_000, seconds=10))
    response = await client.post("/old/file", data=b"x" * 2_500_000)
    assert len(await response.get_data()) == 2_500_000
    assert (await client.post("/old/file", data=b"x" * 3_000_001)).status_code == 413
    with pytest.raises(ValueError, match="A fallback has no body_limit"):
        mount_wsgi(app, flask_app.raw, body_limit=BodyLimit(size=1, seconds=1))


async def test_requests_are_rejected_while_the_schema_gate_is_closed(mount: Mount) -> None:
    response = await mount(requires_schema=True).get("/old/")
    assert response.status_code == 503
    assert response.headers["Retry-After"]


async def test_requests_that_may_change_data_are_limited(settings: Settings) -> None:
    app = create_app(settings)
    mount_wsgi(app, flask_app.raw, "/old", limit=Limit("old", 2, 60))
    async with app.test_app():
        client = app.test_client()
        assert [(await client.post("/old/")).status_code for _ in range(3)] == [200, 200, 429]
        assert (await client.get("/old/")).status_code == 200


async def test_hanging_views_cannot_exhaust_the_server(
    mount: Mount, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quart_upsun.legacy.mount.WAIT_SECONDS", 0.1)
    client = mount(flask_app.create_app(), threads=2, time_limit_seconds=0.3)
    hanging = [client.get("/old/slow?seconds=4") for _ in range(2)]
    assert [each.status_code for each in await asyncio.gather(*hanging)] == [504, 504]
    logged: list[Any] = [record.msg for record in caplog.records]
    timed_out = [each for each in logged if "busy_threads" in each][-1]
    assert timed_out["busy_threads"] == 2
    assert 'time.sleep(float(request.args["seconds"]))' in timed_out["stack"]
    # All threads hang: an old page gets a 503, and pages of this application are served.
    busy = await client.get("/old/quick")
    assert (busy.status_code, busy.headers["Retry-After"]) == (503, "5")
    assert (await client.get("/about/")).status_code == 200
    async with asyncio.timeout(20):
        while (await client.get("/old/quick")).status_code != 200:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_waiting_for_a_thread_does_not_count(mount: Mount) -> None:
    client = mount(flask_app.create_app(), threads=1, time_limit_seconds=2.5)
    slow = [client.get("/old/slow?seconds=1") for _ in range(3)]
    assert [each.status_code for each in await asyncio.gather(*slow)] == [200] * 3


async def test_threads_are_reused() -> None:
    threads, seen = DaemonThreads(2, "test"), set[int]()

    def call() -> None:
        seen.add(threading.get_ident())

    for _ in range(20):
        await threads.submit(call, wait_seconds=5)
    assert len(seen) <= 2
    await eventually(lambda: threads.busy == 0, "idle threads")
