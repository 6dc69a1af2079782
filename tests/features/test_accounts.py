"""Registration, login and logout without JavaScript."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
from bs4 import BeautifulSoup, Tag
from pydantic import SecretStr
from quart import Quart
from quart.testing import QuartClient as Client
from sqlalchemy import URL, func, make_url, select, update

from app import create_app
from app.settings import Settings
from app.user import passwords
from app.user.models import User
from quart_upsun.database.url import parse_database_url
from tests.features.factories import LOGIN_COOKIE, SESSION_COOKIE, Person, new_client


async def page(client: Client, path: str) -> BeautifulSoup:
    response = await client.get(path)
    assert response.status_code == 200
    return BeautifulSoup(await response.get_data(as_text=True), "html.parser")


async def post(client: Client, path: str, form: dict[str, str]) -> tuple[int, BeautifulSoup]:
    response = await client.post(path, form=form)
    text = await response.get_data(as_text=True)
    return response.status_code, BeautifulSoup(text, "html.parser")


def field(soup: BeautifulSoup, form: str, name: str) -> Tag:
    found = soup.select_one(f"form#{form} [name={name}]")
    assert found is not None, f"no field {name} in form#{form}"
    return found


def errors_of(soup: BeautifulSoup, form: str, name: str) -> str:
    """Return the accessible description of a field."""
    described_by = str(field(soup, form, name).get("aria-describedby", ""))
    return " ".join(
        element.get_text(" ", strip=True)
        for identifier in described_by.split()
        if (element := soup.find(id=identifier)) is not None
    )


async def test_register_log_in_and_log_out(app: Quart, client: Client) -> None:
    ada = Person(username="Ada", email="Ada@Example.COM")
    soup = await page(client, "/register/")
    for name in ("username", "email", "password", "confirm"):
        field(soup, "registerForm", name)

    response = await client.post("/register/", form=ada.registration)
    assert response.status_code == 303
    assert response.location == "/"
    home = await client.get("/")
    assert "Thank you for registering" in await home.get_data(as_text=True)
    assert home.headers["Cache-Control"] == "private, no-store"
    again = await client.get("/")
    assert "Thank you for registering" not in await again.get_data(as_text=True)
    assert again.headers["Cache-Control"].startswith("public")

    response = await client.post("/login/", form={"username": "ada", "password": ada.password})
    assert response.status_code == 303
    assert response.location == "/users/"
    members = await client.get("/users/")
    assert members.headers["Cache-Control"] == "private, no-store"
    text = await members.get_data(as_text=True)
    assert "You are logged in." in text
    assert "Ada" in text
    home = await client.get("/")
    assert home.headers["Cache-Control"] == "private, no-store"
    soup = BeautifulSoup(await home.get_data(as_text=True), "html.parser")
    assert soup.select_one("form#loginForm") is None
    assert soup.select_one("form[action='/logout/'][method=post]") is not None

    response = await client.post("/logout/")
    assert response.status_code == 303
    assert (await client.get("/users/")).status_code == 303
    assert "You are logged out." in (await page(client, "/")).get_text()


async def test_every_anonymous_page_has_one_login_form(
    client: Client,
) -> None:
    for path in ("/", "/about/", "/register/", "/login/"):
        soup = await page(client, path)
        assert len(soup.select("form#loginForm")) == 1, path
        assert bool(soup.select("nav form#loginForm")) == (path != "/login/"), path
        identifiers = [str(element["id"]) for element in soup.select("[id]")]
        assert len(identifiers) == len(set(identifiers)), path


async def test_pages_have_no_inline_scripts_or_styles(app: Quart, client: Client) -> None:
    for path in ("/", "/about/", "/register/", "/login/", "/nowhere/"):
        response = await client.get(path)
        soup = BeautifulSoup(await response.get_data(as_text=True), "html.parser")
        assert not soup.select("[style], style, script:not([src])"), path
        assert not [
            name for element in soup.find_all() for name in element.attrs if name.startswith("on")
        ], path


@pytest.mark.parametrize(
    ("change", "name", "message"),
    [
        ({"username": ""}, "username", "Enter a username."),
        ({"username": "ab"}, "username", "Use 3 to 25 characters."),
        ({"username": "a" * 26}, "username", "Use 3 to 25 characters."),
        ({"username": "<b>ada</b>"}, "username", "Use only letters, digits, dots"),
        ({"username": "аdа"}, "username", "Use only letters, digits, dots"),  # noqa: RUF001 Cyrillic
        ({"username": "ada\n"}, "username", ""),
        ({"email": ""}, "email", "Enter your email address."),
        ({"email": "ada"}, "email", "Enter a valid email address."),
        ({"email": "a@b@example.com"}, "email", "Enter a valid email address."),
        ({"email": "x" * 10_000 + "@example.com"}, "email", "Enter a valid email address."),
        ({"email": "ada\x00@example.com"}, "email", ""),
        ({"password": "short", "confirm": "short"}, "password", "Use 10 to 1024"),
        ({"password": "x" * 1025, "confirm": "x" * 1025}, "password", "Use 10 to 1024"),
        ({"confirm": "something else"}, "confirm", "Passwords do not match."),
        ({"confirm": ""}, "confirm", "Enter the password again."),
        ({"password": "Password123", "confirm": "Password123"}, "password", "too common"),
        ({"password": "aaaaaaaaaaaa", "confirm": "aaaaaaaaaaaa"}, "password", "too common"),
        (
            {"username": "long-enough", "password": "Long-Enough", "confirm": "Long-Enough"},
            "password",
            "not your username or email address",
        ),
        (
            {"email": "Ada@example.com", "password": "ada@example.com", "confirm": ""},
            "password",
            "not your username or email address",
        ),
    ],
)
async def test_invalid_input_has_an_error_at_its_field(
    client: Client, change: dict[str, str], name: str, message: str
) -> None:
    sent = Person().registration | change
    status, soup = await post(client, "/register/", sent)
    if not message:  # these characters are removed silently
        assert status == 303
        return
    assert status == 200
    assert message in errors_of(soup, "registerForm", name)
    assert field(soup, "registerForm", name)["aria-invalid"] == "true"
    for kept in ("username", "email"):
        assert field(soup, "registerForm", kept).get("value", "") == sent[kept].strip()
    for dropped in ("password", "confirm"):
        assert not field(soup, "registerForm", dropped).get("value")


async def test_missing_or_malformed_forms_are_not_server_errors(client: Client) -> None:
    for path in ("/register/", "/login/"):
        assert (await client.post(path, form={})).status_code == 200
        assert (await client.post(path)).status_code == 200
        response = await client.post(path, data=b"\xff\xfe%%%", headers={"Content-Type": "x/y"})
        assert response.status_code == 200
        response = await client.post(
            path,
            data=b"--x\r\nnonsense",
            headers={"Content-Type": "multipart/form-data; boundary=x"},
        )
        assert response.status_code in {200, 400}


async def test_register_rejects_taken_username_case_insensitively(
    app: Quart, client: Client
) -> None:
    ada = await Person(username="Ada").register(app)
    status, soup = await post(client, "/register/", ada.registration | {"username": "aDA"})
    assert status == 200
    assert "taken" in errors_of(soup, "registerForm", "username")


async def test_concurrent_registrations_of_one_username(app: Quart) -> None:
    people = [Person(username="CONTESTED" if n % 2 else "Contested") for n in range(20)]
    responses = await asyncio.gather(
        *(app.test_client().post("/register/", form=person.registration) for person in people)
    )
    assert Counter(response.status_code for response in responses) == {303: 1, 200: 19}
    for response in responses:
        if response.status_code == 200:
            soup = BeautifulSoup(await response.get_data(as_text=True), "html.parser")
            assert errors_of(soup, "registerForm", "username")
    async with app.extensions["quart_upsun"].database.read() as session:
        assert await session.scalar(select(func.count(User.id))) == 1


async def test_registration_does_not_reveal_registered_email_addresses(app: Quart) -> None:
    ada = await Person(email="ada@example.com").register(app)
    answers = []
    for email in (ada.email, "ADA@example.com", "new@example.com"):
        client = new_client(app)
        person = Person(email=email)
        response = await client.post("/register/", form=person.registration)
        home = await client.get("/")
        answers.append((response.status_code, await home.get_data(as_text=True)))
        await person.log_in(client)  # the account exists, and claims the email address
    assert len(set(answers)) == 1
    assert "Thank you for registering" in answers[0][1]


async def test_login_error_does_not_reveal_whether_user_exists(app: Quart, client: Client) -> None:
    ada = await Person().register(app)
    answers = []
    for username, password in (
        (ada.username, "not the password"),
        ("nobody", "not the password"),
        ("no such name!", "not the password"),
        ("nul\x00byte", "not the password"),
    ):
        status, soup = await post(client, "/login/", {"username": username, "password": password})
        assert status == 200
        form = soup.select_one("form#loginForm")
        assert form is not None
        answers.append(form.get_text(" ", strip=True))
        assert not field(soup, "loginForm", "password").get("value")
    assert len(set(answers)) == 1
    assert "Incorrect username or password." in answers[0]


async def test_login_verifies_a_hash_for_unknown_users(
    app: Quart, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counts verifications instead of measuring time: one for each login attempt."""
    ada = await Person().register(app)
    verified: list[str | None] = []
    verify = passwords.verify_password

    async def count(password_hash: str | None, password: str) -> bool:
        verified.append(password_hash)
        return await verify(password_hash, password)

    monkeypatch.setattr(app.extensions["site"], "verify_password", count)
    for username in (ada.username, "nobody", "no such name!"):
        await app.test_client().post(
            "/login/", form={"username": username, "password": "not the password"}
        )
    assert [bool(password_hash) for password_hash in verified] == [True, False, False]


async def test_login_upgrades_outdated_hash(
    app: Quart, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada = await Person().register(app)
    stronger = type(passwords.HASHER)(memory_cost=20 * 1024, time_cost=2, parallelism=1)
    monkeypatch.setattr(passwords, "HASHER", stronger)
    await ada.log_in(client)
    async with app.extensions["quart_upsun"].database.read() as session:
        password_hash = await session.scalar(select(User.password_hash))
    assert password_hash is not None
    assert "m=20480" in password_hash
    await ada.log_in(new_client(app))


async def test_incremented_session_version_ends_the_login(app: Quart, client: Client) -> None:
    ada = await Person().register(app)
    await ada.log_in(client)
    assert (await client.get("/users/")).status_code == 200
    async with app.extensions["quart_upsun"].database.write() as session:
        await session.execute(update(User).values(session_version=2))
    response = await client.get("/")
    assert f"{LOGIN_COOKIE}=;" in response.headers["Set-Cookie"]
    assert (await client.get("/users/")).status_code == 303


@pytest.mark.parametrize("cookie", ["nonsense", "", "a.b.c", "'; DROP TABLE users"])
async def test_forged_login_cookie_is_rejected(client: Client, cookie: str) -> None:
    both = f"{LOGIN_COOKIE}={cookie}; {SESSION_COOKIE}={cookie}"
    response = await client.get("/users/", headers={"Cookie": both})
    assert response.status_code == 303


async def test_login_redirects_only_within_the_site(app: Quart, client: Client) -> None:
    ada = await Person().register(app)
    form = {"username": ada.username, "password": ada.password}
    for target, location in (
        ("/about/", "/about/"),
        ("//evil.example", "/users/"),
        ("https://evil.example", "/users/"),
        ("/\\evil.example", "/users/"),
    ):
        response = await client.post("/login/", query_string={"next": target}, form=form)
        assert (response.status_code, response.location) == (303, location)
    soup = await page(new_client(app), "/login/?next=/about/")
    form_tag = soup.select_one("form#loginForm")
    assert form_tag is not None
    assert form_tag["action"] == "/login/?next=/about/"


async def test_logged_in_user_is_redirected_from_login_and_register(
    app: Quart, client: Client
) -> None:
    await (await Person().register(app)).log_in(client)
    for path in ("/login/", "/register/"):
        assert (await client.get(path)).location == "/users/"


class Relay:
    """A proxy between the application and PostgreSQL that counts round trips.

    In the PostgreSQL protocol, a round trip ends with a Sync message or is a simple Query message.
    https://www.postgresql.org/docs/18/protocol-flow.html
    """

    def __init__(self, url: str) -> None:
        self.target = make_url(url)
        self.round_trips = 0

    @asynccontextmanager
    async def listen(self) -> AsyncIterator[URL]:
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        try:
            yield parse_database_url(self.target.set(port=port))
        finally:
            server.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream, to_upstream = await asyncio.open_connection(self.target.host, self.target.port)
        answers = asyncio.create_task(self._pass(upstream, writer))
        with suppress(asyncio.IncompleteReadError):
            while True:
                kind = await reader.readexactly(1)
                # The first messages of a connection have no type byte; their length starts with 0.
                length = (kind if kind == b"\0" else b"") + await reader.readexactly(
                    3 if kind == b"\0" else 4
                )
                body = await reader.readexactly(int.from_bytes(length) - 4)
                self.round_trips += kind in {b"S", b"Q"}
                to_upstream.write((b"" if kind == b"\0" else kind) + length + body)
        to_upstream.close()
        await answers

    async def _pass(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            target.write(data)
        target.close()


async def test_members_page_takes_two_database_round_trips(database_url: str) -> None:
    """The two queries need no BEGIN, ROLLBACK, ping or second PREPARE."""
    relay = Relay(database_url)
    async with relay.listen() as url:
        settings = Settings(
            database_url=url, secret_key=SecretStr("for tests only"), run_jobs=False
        )
        app = create_app(settings)
        async with app.test_app():
            client = new_client(app)
            await (await Person().register(app)).log_in(client)
            await client.get("/users/")
            before = relay.round_trips
            assert (await client.get("/users/")).status_code == 200
            assert relay.round_trips - before == 2
