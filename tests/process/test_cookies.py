"""Login cookies, set by the real server."""

from http.cookies import SimpleCookie

import httpx
import pytest

from quart_upsun.testing.servers import UPSUN, serving
from tests.features.factories import DEVICE_COOKIE, LOGIN_COOKIE, SESSION_COOKIE, Person

PROCESSES = pytest.mark.parametrize("processes", [1, 2])


@PROCESSES
async def test_cookies_are_secure_on_upsun(processes: int, database_url: str) -> None:
    person = Person()
    routed = {"Host": "www.example.com", "X-Forwarded-Proto": "https", "X-Client-IP": "192.0.2.7"}
    async with (
        serving(processes, "app.server", DATABASE_URL=database_url, **UPSUN) as server,
        httpx.AsyncClient(base_url=server.url, headers=routed) as client,
    ):
        anonymous = await client.get("/")
        assert anonymous.status_code == 200
        assert "set-cookie" not in anonymous.headers
        registered = await client.post("/register/", data=person.registration)
        assert registered.status_code == 303
        form = {"username": person.username, "password": person.password}
        logged_in = await client.post("/login/", data=form)
        assert logged_in.status_code == 303
        await server.stop_cleanly()
    cookies = SimpleCookie()
    for answer in (registered, logged_in):
        for header in answer.headers.get_list("set-cookie"):
            cookies.load(header)
    assert set(cookies) == {
        f"__Host-{name}" for name in (SESSION_COOKIE, LOGIN_COOKIE, DEVICE_COOKIE)
    }
    for cookie in cookies.values():
        assert cookie["secure"]
        assert cookie["httponly"]
        assert cookie["samesite"] == "Lax"
        assert cookie["path"] == "/"
        assert not cookie["domain"]


@PROCESSES
@pytest.mark.parametrize("host", ["www.example.com", "app:8000"])
async def test_cookies_are_secure_behind_a_tls_proxy(
    processes: int, host: str, database_url: str
) -> None:
    """Off Upsun, proxy headers are not trusted, and `PUBLIC_ORIGIN` sets the origin."""
    person = Person()
    # Older browsers send no Sec-Fetch-Site, and some proxies do not forward the Host header.
    browser = {"Host": host, "X-Forwarded-Proto": "https", "Origin": "https://www.example.com"}
    async with (
        serving(
            processes,
            "app.server",
            DATABASE_URL=database_url,
            PUBLIC_ORIGIN="https://www.example.com",
        ) as server,
        httpx.AsyncClient(base_url=server.url, headers=browser) as client,
    ):
        registered = await client.post("/register/", data=person.registration)
        assert registered.status_code == 303
        form = {"username": person.username, "password": person.password}
        logged_in = await client.post("/login/", data=form)
        assert logged_in.status_code == 303
        assert logged_in.headers["Strict-Transport-Security"]
        cookies = SimpleCookie()
        for header in logged_in.headers.get_list("set-cookie"):
            cookies.load(header)
        assert {f"__Host-{name}" for name in (SESSION_COOKIE, LOGIN_COOKIE)} <= set(cookies)
        assert all(cookie["secure"] for cookie in cookies.values())
        # httpx does not send Secure cookies over http.
        names = {"Cookie": "; ".join(f"{name}={each.value}" for name, each in cookies.items())}
        assert (await client.get("/users/", headers=names)).status_code == 200
        for origin in ("https://evil.example", "null", "https://www.example.com.evil.example"):
            refused = await client.post("/login/", data=form, headers={"Origin": origin})
            assert refused.status_code == 403
        for headers, status in (
            ({"Origin": "https://www.example.com"}, 303),
            ({"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"}, 403),
            ({"Sec-Fetch-Site": "same-site"}, 403),
        ):
            answer = await client.post("/logout/", headers={**names, **headers})
            assert answer.status_code == status
        await server.stop_cleanly()
