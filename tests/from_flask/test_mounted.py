"""The Flask application mounted in this one: one login, both kinds of pages, one shutdown."""

import asyncio
import hashlib
import os
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from werkzeug.security import generate_password_hash

from quart_upsun.testing.servers import Connection, Server, eventually, serving
from quart_upsun.testing.statements import connected
from tests.flask_application import DIRECTORY, FlaskApplication, flask_python
from tests.from_flask.conftest import PASSWORD, Command

PAGES = ("/about/", "/old/about/", "/livez", "/old/orders/environ")


@asynccontextmanager
async def mounted(url: str, processes: int = 1) -> AsyncIterator[Server]:
    """Run this application with the Flask application mounted, and the packages of both."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = flask_python().parent.parent / "lib" / version / "site-packages"
    async with serving(
        *(processes, "tests.from_flask.mounted_server"),
        DATABASE_URL=url,
        PYTHONPATH=os.pathsep.join((str(Path.cwd()), str(DIRECTORY), str(packages))),
        PYTHONDONTWRITEBYTECODE="1",
        PYTHONWARNINGS="ignore",  # of the old packages
        RUN_JOBS="false",
    ) as server:
        yield server


async def log_in(client: httpx.AsyncClient, username: str) -> None:
    response = await client.post("/login/", data={"username": username, "password": PASSWORD})
    assert response.status_code == 303, response.text


async def hash_of(url: str, user_id: int) -> str:
    async with connected(url) as connection:
        found: str = await connection.fetchval(
            "SELECT password_hash FROM users WHERE id = $1", user_id
        )
    return found


async def test_users_use_both_applications_with_one_login(
    shop: FlaskApplication, run: Command
) -> None:
    # Beside Flask-Bcrypt's, which all users have.
    others = {6: "scrypt", 7: "pbkdf2:sha256:1000"}
    async with connected(shop.url) as connection:
        for user_id, method in others.items():
            encoded = generate_password_hash(PASSWORD, method).encode()
            await connection.execute(
                "UPDATE users SET password = $1 WHERE id = $2", encoded, user_id
            )
    run.done("quart", "adopt", "--yes")
    users = ((1, "ada", "$2b$"), (6, "cleo", "scrypt:"), (7, "dora", "pbkdf2:"))
    async with mounted(shop.url) as server:
        for user_id, username, prefix in users:
            assert (await hash_of(shop.url, user_id)).startswith(prefix)
            async with httpx.AsyncClient(base_url=server.url) as client:
                anonymous = await client.get("/old/users/")
                assert anonymous.status_code == 303
                assert anonymous.headers["Location"] == "/login/?next=/old/users/"
                await log_in(client, username)
                assert (await hash_of(shop.url, user_id)).startswith("$argon2id$")
                for path in ("/old/users/", "/users/", "/old/orders/", "/account/"):
                    page = await client.get(path)
                    assert page.status_code == 200, path
                    assert username in page.text

                # Logging out of the old application logs out of this one.
                assert (await client.get("/old/logout/")).headers["Location"] == "/old/"
                assert (await client.get("/account/")).status_code == 303
                assert (await client.get("/old/users/")).status_code == 303

                # And the other way round.
                await log_in(client, username)
                assert (await client.get("/old/users/")).status_code == 200
                old_cookies = {"session": client.cookies["session"]}
                assert (await client.post("/logout/")).status_code == 303
                assert (await client.get("/old/users/")).status_code == 303
                # The old session cookie alone logs nobody in.
                async with httpx.AsyncClient(base_url=server.url, cookies=old_cookies) as thief:
                    assert (await thief.get("/old/users/")).status_code == 303
        await server.stop_cleanly()


async def test_revoked_login_is_revoked_in_both(shop: FlaskApplication, run: Command) -> None:
    run.done("quart", "adopt", "--yes")
    async with (
        mounted(shop.url) as server,
        httpx.AsyncClient(base_url=server.url) as client,
    ):
        await log_in(client, "ada")
        assert "Welcome ada" in (await client.get("/old/users/")).text
        # Another user in the same browser.
        await log_in(client, "cleo")
        assert "Welcome cleo" in (await client.get("/old/users/")).text
        async with connected(shop.url) as connection:
            await connection.execute("UPDATE users SET session_version = session_version + 1")
        assert (await client.get("/old/users/")).status_code == 303
        await server.stop_cleanly()


async def test_guards_hold_for_the_flask_application(shop: FlaskApplication, run: Command) -> None:
    run.done("quart", "adopt", "--yes")
    async with (
        mounted(shop.url) as server,
        httpx.AsyncClient(base_url=server.url) as client,
    ):
        page = await client.get("/old/")
        assert page.headers["Content-Security-Policy"] == "default-src 'self' 'unsafe-inline'"
        assert page.headers["X-Frame-Options"] == "DENY"
        cross_site = {"Sec-Fetch-Site": "cross-site"}
        assert (await client.post("/old/orders/ignore", headers=cross_site)).status_code == 403
        body = os.urandom(4_000_000)
        uploaded = (await client.post("/old/orders/upload", content=body)).json()
        assert uploaded == {"length": len(body), "sha256": hashlib.sha256(body).hexdigest()}
        assert (await client.post("/old/orders/ignore", content=body)).text == "ignored\n"
        too_large = await client.post("/old/orders/upload", content=bytes(5_000_001))
        assert too_large.status_code == 413
        exported = await client.get("/old/orders/export.csv?lines=1000")
        assert len(exported.text.splitlines()) == 1000
        broken = await client.get("/old/orders/broken")
        assert (broken.status_code, "on purpose" in broken.text) == (500, False)
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get("/old/orders/broken-stream")
        environ = (await client.get("/old/orders/environ")).json()
        assert environ["SCRIPT_NAME"] == "/old"
        server.send()
        assert await server.wait_for_exit() == 0


@pytest.mark.alone
async def test_shutdown_under_load_loses_no_request_of_either(
    shop: FlaskApplication, run: Command
) -> None:
    """Slow requests are in flight on both sides, and clients go on until they are refused."""
    run.done("quart", "adopt", "--yes")
    counts: Counter[str] = Counter()

    async def client(server: Server, number: int) -> None:
        while True:
            try:
                connection = await Connection.to(server)
            except ConnectionError:
                return
            path = PAGES[(number + counts.total()) % len(PAGES)]
            try:
                await connection.get(path)
                status, _, _ = await connection.read_response()
            except (ConnectionError, asyncio.IncompleteReadError):
                counts["lost"] += 1
                return
            finally:
                await connection.close()
            counts[f"{path} {status}"] += 1

    async def slow(server: Server) -> None:
        connection = await Connection.to(server)
        await connection.get("/old/orders/slow?seconds=1.5")
        counts[f"slow {(await connection.read_response())[0]}"] += 1
        await connection.close()

    async with mounted(shop.url) as server, asyncio.TaskGroup() as group:
        for number in range(8):
            group.create_task(client(server, number))
        await eventually(lambda: counts.total() > 200, "steady load")
        for _ in range(3):
            group.create_task(slow(server))
        await server.wait_for_event("slow request received", times=3)
        await server.stop_cleanly()
    assert set(counts) == {f"{path} 200" for path in PAGES} | {"slow 200"}, counts
    assert counts["slow 200"] == 3
