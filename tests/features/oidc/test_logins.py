"""Log in with a provider: accounts that are found, created, refused."""

import re
from typing import Any

import pytest
from bs4 import BeautifulSoup
from quart import Quart
from quart.testing import QuartClient as Client
from sqlalchemy import func, select, update

from app.settings import Settings
from app.user import accounts
from app.user.models import User
from app.user.oidc import http, id_tokens, providers
from app.user.oidc.linked_logins import username_of
from app.user.oidc.models import LinkedLogin
from quart_upsun.database import Database
from quart_upsun.security.models import AuditEvent
from tests.features.factories import Person, cookies_of, new_client
from tests.features.oidc.conftest import ProviderProcess, begin, kind_of, log_in_with, visit

FLOW_COOKIE = f"{Settings.name}-provider"


async def count(database: Database, model: Any) -> int:
    async with database.read() as session:
        return await session.scalar(select(func.count()).select_from(model)) or 0


async def events(database: Database) -> list[str]:
    async with database.read() as session:
        return list(await session.scalars(select(AuditEvent.kind).order_by(AuditEvent.id)))


async def user_by_email(database: Database, email: str) -> User | None:
    async with database.read() as session:
        return await session.scalar(select(User).where(User.email == email))


async def is_logged_in(client: Client) -> bool:
    return (await client.get("/users/")).status_code == 200


async def test_login_creates_an_account_with_a_verified_address(
    client: Client, database: Database, provider: ProviderProcess
) -> None:
    provider.be("s-1", "New@Example.com", preferred_username="new.person")
    response = await log_in_with(client, "/login/with/mine/?next=/account/")
    assert (response.status_code, response.location) == (303, "/account/")
    assert await is_logged_in(client)
    user = await user_by_email(database, "New@example.com")
    assert user is not None
    assert (user.username, user.password_hash, user.pending_email) == ("new.person", None, None)
    async with database.read() as session:
        assert await session.scalar(select(LinkedLogin.last_used_at)) is not None
    assert await events(database) == [
        "registered",
        "email address confirmed",
        "login with a provider linked",
        "logged in",
    ]
    # The password form does not let anybody in.
    refused = await new_client(client.app).post(
        "/login/", form={"username": "new.person", "password": "anything"}
    )
    assert refused.status_code == 200


async def test_second_login_finds_the_same_account(
    client: Client, app: Quart, database: Database, provider: ProviderProcess
) -> None:
    await log_in_with(client)
    again = new_client(app)
    assert (await log_in_with(again)).status_code == 303
    assert await is_logged_in(again)
    assert await count(database, User) == 1
    async with database.read() as session:
        assert await session.scalar(select(LinkedLogin.last_used_at)) is not None


async def test_address_that_changes_at_the_provider_changes_nothing_but_the_shown_one(
    client: Client, app: Quart, database: Database, provider: ProviderProcess
) -> None:
    provider.be("s-1", "before@example.com")
    await log_in_with(client)
    other = await Person(email="after@example.com").register(app)
    provider.be("s-1", "after@example.com")
    again = new_client(app)
    assert (await log_in_with(again)).status_code == 303
    page = await (await again.get("/account/providers/")).get_data(as_text=True)
    assert "after@example.com" in page
    user = await user_by_email(database, "before@example.com")
    assert user is not None
    assert user.id != other.id


async def test_address_of_someone_else_after_a_change_of_hands(
    client: Client, app: Quart, database: Database, provider: ProviderProcess
) -> None:
    """The subject identifies a user. The same address with another subject is a stranger."""
    provider.be("s-1", "shared@example.com")
    await log_in_with(client)
    provider.be("s-2", "shared@example.com")
    stranger = new_client(app)
    response = await log_in_with(stranger)
    assert (response.status_code, await kind_of(response)) == (409, "taken")
    assert not await is_logged_in(stranger)


async def test_existing_address_is_never_taken_over(
    client: Client, app: Quart, database: Database, provider: ProviderProcess
) -> None:
    ada = await Person(email="ada@example.com").register(app)
    provider.be("s-1", "ADA@example.com")
    response = await log_in_with(client)
    assert (response.status_code, await kind_of(response)) == (409, "taken")
    page = await response.get_data(as_text=True)
    assert "ADA@example.com" in page
    assert 'href="/account/providers/"' in page
    assert not await is_logged_in(client)
    assert await count(database, LinkedLogin) == 0
    await ada.log_in(client)  # as before


async def test_unconfirmed_claims_of_others_do_not_count(
    client: Client, app: Quart, database: Database, provider: ProviderProcess
) -> None:
    claimant = await Person(email="ada@example.com").register(app, confirmed=False)
    response = await log_in_with(client)
    assert response.status_code == 303
    owner = await user_by_email(database, "ada@example.com")
    assert owner is not None
    assert owner.id != claimant.id
    # The claim is worth nothing any more, and its password opens only its own account.
    with pytest.raises(accounts.AccountTakenError):
        async with database.write() as session:
            await accounts.confirm_email(session, claimant.id, "ada@example.com")


@pytest.mark.parametrize(
    ("email", "verified"),
    [
        ("ada@example.com", False),
        ("ada@example.com", None),
        ("ada@example.com", "false"),
        ("ada@example.com", 1),
        (None, True),
        ("not an address", True),
    ],
)
async def test_unverified_address_creates_no_account(
    client: Client, database: Database, provider: ProviderProcess, email: str | None, verified: Any
) -> None:
    provider.be("s-1", email, verified=verified)
    response = await log_in_with(client)
    assert (response.status_code, await kind_of(response)) == (403, "unverified")
    assert await count(database, User) == 0


async def test_deactivated_user_cannot_log_in(
    client: Client, app: Quart, database: Database, provider: ProviderProcess
) -> None:
    await log_in_with(client)
    async with database.write() as session:
        await session.execute(update(User).values(deactivated_at=func.now()))
    again = new_client(app)
    response = await log_in_with(again)
    assert (response.status_code, await kind_of(response)) == (403, "deactivated")
    assert not await is_logged_in(again)
    assert (await events(database))[-1] == "login failed"


@pytest.mark.parametrize(
    ("name", "username"),
    [
        ("ada", "ada"),
        ("Ada Lovelace", "Ada-Lovelace"),
        ("ada@example.com", None),
        ("Ægir", "gir"),
        ("李", None),
        ("-_x_-", None),
        ("a" * 24 + "-b", "a" * 24),
        ("a\x00b\nc", "a-b-c"),
    ],
)
def test_usernames_are_made_valid(name: str, username: str | None) -> None:
    assert username_of(name) == username


@pytest.mark.parametrize(
    ("claims", "pattern"),
    [
        ({"preferred_username": "taken"}, r"taken-\d{6}"),
        ({"preferred_username": "x@example.com", "name": "Ada Lovelace"}, "Ada-Lovelace"),
        ({"name": "李"}, r"user-\d{6}"),
        ({}, r"user-\d{6}"),
        ({"preferred_username": {"a": 1}}, r"user-\d{6}"),
    ],
)
async def test_username_is_free_and_does_not_reveal_the_address(
    client: Client,
    app: Quart,
    database: Database,
    provider: ProviderProcess,
    claims: dict[str, Any],
    pattern: str,
) -> None:
    await Person("taken").register(app)
    provider.be("s-1", "secret-name@example.com", **claims)
    await log_in_with(client)
    user = await user_by_email(database, "secret-name@example.com")
    assert user is not None
    assert re.fullmatch(pattern, user.username)


@pytest.mark.parametrize(
    "behavior",
    [
        {"claims": {"nonce": "of another login"}},
        {"claims": {"nonce": None}},
        {"claims": {"iss": "https://evil.example"}},
        {"claims": {"iss": None}},
        {"claims": {"aud": "another client"}},
        {"claims": {"aud": "another client", "azp": "client"}},
        {"claims": {"aud": None}},
        {"claims": {"aud": ["client", "another client"]}},
        {"claims": {"azp": "another client"}},
        {"claims": {"exp": 1}},
        {"claims": {"exp": None}},
        {"claims": {"exp": "soon"}},
        {"claims": {"iat": 99999999999}},
        {"claims": {"iat": None}},
        {"claims": {"nbf": 99999999999}},
        {"claims": {"sub": None}},
        {"claims": {"sub": ""}},
        {"claims": {"sub": "x" * 256}},
        {"claims": {"sub": 7}},
        {"claims": {"at_hash": "AAAAAAAAAAAAAAAAAAAAAA"}},
        {"algorithm": "none"},
        {"algorithm": "HS256"},
        {"algorithm": "RS512"},
        {"response_iss": "https://evil.example"},
        {"metadata": {"authorization_response_iss_parameter_supported": True}},
        {"status": {"/token": 400}},
        {"claims": {"email": None}, "userinfo": {"sub": "another subject"}},
        {"claims": {"email": None}, "access_token": "\u00e9"},
        {"metadata": {"id_token_signing_alg_values_supported": [{}]}},
        pytest.param({"body": {"/jwks": "[" * 100_000}}, id="deeply nested keys"),
    ],
    ids=str,
)
async def test_response_that_cannot_be_trusted_is_refused(
    client: Client, database: Database, provider: ProviderProcess, behavior: dict[str, Any]
) -> None:
    provider.behave(**behavior)
    response = await log_in_with(client)
    assert (response.status_code, await kind_of(response)) == (400, "rejected")
    assert not await is_logged_in(client)
    assert await count(database, User) == 0


@pytest.mark.parametrize(
    "metadata",
    [
        {"issuer": "https://evil.example"},
        {"issuer": None},
        {"token_endpoint": "http://evil.example/token"},
        {"jwks_uri": None},
    ],
    ids=str,
)
async def test_wrong_discovery_document_is_refused(
    client: Client, provider: ProviderProcess, metadata: dict[str, Any]
) -> None:
    provider.behave(metadata=metadata)
    response = await client.post("/login/with/mine/")
    assert (response.status_code, await kind_of(response)) == (503, "unavailable")
    assert FLOW_COOKIE not in cookies_of(client)


async def test_endless_response_is_refused(client: Client, provider: ProviderProcess) -> None:
    provider.behave(metadata={"padding": "x" * http.MAX_RESPONSE_BYTES})
    response = await client.post("/login/with/mine/")
    assert (response.status_code, await kind_of(response)) == (503, "unavailable")


async def test_issuer_in_the_response_is_accepted_if_it_is_right(
    client: Client, provider: ProviderProcess
) -> None:
    provider.behave(
        response_iss=provider.origin,
        metadata={"authorization_response_iss_parameter_supported": True},
    )
    assert (await log_in_with(client)).status_code == 303


async def test_address_of_the_user_info_is_used_if_the_token_has_none(
    client: Client, database: Database, provider: ProviderProcess
) -> None:
    provider.behave(claims={"email": None, "email_verified": None})
    assert (await log_in_with(client)).status_code == 303
    assert await user_by_email(database, "ada@example.com")


async def test_client_secret_in_the_form_where_the_provider_knows_it(
    client: Client, provider: ProviderProcess
) -> None:
    methods = ["client_secret_basic", "client_secret_post"]
    provider.behave(metadata={"token_endpoint_auth_methods_supported": methods})
    assert (await log_in_with(client)).status_code == 303


async def test_issuer_of_each_microsoft_tenant(client: Client, provider: ProviderProcess) -> None:
    """The discovery document of Microsoft's common endpoint has a template as issuer."""
    tenant = "72f988bf-86f1-41af-91ab-2d7cd011db47"
    provider.behave(metadata={"issuer": f"{provider.origin}/{{tenantid}}/v2.0"})
    right = f"{provider.origin}/{tenant}/v2.0"
    for claims, status in [
        ({"iss": right, "tid": tenant}, 303),
        ({"iss": right, "tid": "72f988bf-86f1-41af-91ab-000000000000"}, 400),
        ({"iss": right}, 400),
        ({"iss": f"{provider.origin}/../v2.0", "tid": ".."}, 400),
    ]:
        provider.behave(claims=claims)
        assert (await log_in_with(client)).status_code == status, claims


async def test_rotated_keys_are_fetched_once(
    client: Client, provider: ProviderProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    await log_in_with(client)
    provider.behave(rotate=True)
    # Just after a fetch, an unknown key causes none: anyone can send such tokens.
    assert (await log_in_with(client)).status_code == 400
    monkeypatch.setattr(id_tokens, "REFETCH_SECONDS", -1.0)
    assert (await log_in_with(client)).status_code == 303
    assert provider.requests.count("/jwks") == 2
    assert (await log_in_with(client)).status_code == 303
    assert provider.requests.count("/jwks") == 2
    assert provider.requests.count("/.well-known/openid-configuration") == 1


async def test_cached_documents_expire(
    client: Client, provider: ProviderProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(id_tokens, "KEYS_SECONDS", -1.0)
    monkeypatch.setattr(providers, "DISCOVERY_SECONDS", -1.0)
    await log_in_with(client)
    await log_in_with(client)
    assert provider.requests.count("/jwks") == 2
    assert provider.requests.count("/.well-known/openid-configuration") > 2


async def test_cookies_of_the_provider_are_not_kept(
    client: Client, app: Quart, provider: ProviderProcess
) -> None:
    """The connection is shared by all users."""
    await log_in_with(client)
    await log_in_with(new_client(app))
    assert not any("tracking" in each for each in provider.requests)


@pytest.mark.parametrize("path", ["/token", "/jwks"])
@pytest.mark.parametrize("failure", ["hang", "status"])
async def test_provider_that_fails_during_the_login(
    client: Client,
    provider: ProviderProcess,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    failure: str,
) -> None:
    monkeypatch.setattr(http, "STEP_TIMEOUT_SECONDS", 60.0)
    provider.behave(**({"hang": [path]} if failure == "hang" else {"status": {path: 500}}))
    callback = await visit(await begin(client))
    monkeypatch.setattr(providers, "LOGIN_TIMEOUT_SECONDS", 0.3)
    response = await client.get(callback)
    assert (response.status_code, await kind_of(response)) == (503, "unavailable")


async def test_all_requests_of_a_login_have_one_time_limit(
    client: Client, provider: ProviderProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "STEP_TIMEOUT_SECONDS", 60.0)
    monkeypatch.setattr(providers, "LOGIN_TIMEOUT_SECONDS", 0.3)
    provider.behave(hang=["/.well-known/openid-configuration"])
    response = await client.post("/login/with/mine/")
    assert (response.status_code, await kind_of(response)) == (503, "unavailable")


async def test_password_login_works_while_a_provider_is_down(client: Client, app: Quart) -> None:
    ada = await Person().register(app)
    response = await client.post("/login/with/down/")  # the connection is refused
    assert (response.status_code, await kind_of(response)) == (503, "unavailable")
    assert "password" in await response.get_data(as_text=True)
    assert "Log in with Down" in await (await client.get("/login/")).get_data(as_text=True)
    await ada.log_in(client)


async def test_state_is_bound_to_the_browser(
    client: Client, app: Quart, provider: ProviderProcess
) -> None:
    """Otherwise an attacker could log a user in to the attacker's account."""
    path = await visit(await begin(client))
    for victim in (new_client(app), new_client(app)):
        response = await victim.get(path)
        assert (response.status_code, await kind_of(response)) == (400, "expired")
        await begin(victim)  # with a flow of its own, the second time
        response = await victim.get(path)
        assert (response.status_code, await kind_of(response)) == (400, "expired")
        assert not await is_logged_in(victim)
    assert (await client.get(path)).status_code == 303


async def test_wrong_state_and_reuse_are_refused(client: Client, provider: ProviderProcess) -> None:
    path = await visit(await begin(client))
    for wrong in (re.sub("state=[^&]+", "state=x", path), re.sub("&?state=[^&]+", "", path)):
        assert await kind_of(await client.get(wrong)) == "expired"
    # The same flow at the callback of another provider (mix-up attack).
    assert await kind_of(await client.get(path.replace("/mine/", "/other/"))) == "expired"
    assert (await client.get(path)).status_code == 303
    assert FLOW_COOKIE not in cookies_of(client)
    assert await kind_of(await client.get(path)) == "expired"


async def test_code_of_another_login_is_refused(
    client: Client, app: Quart, provider: ProviderProcess
) -> None:
    """PKCE: the code belongs to the browser that started."""
    stolen = await visit(await begin(new_client(app)))
    own = await visit(await begin(client))
    code = re.search("code=([^&]+)", stolen)
    assert code is not None
    response = await client.get(re.sub("code=[^&]+", code[0], own))
    assert await kind_of(response) == "rejected"


async def test_flow_cookie_is_protected(client: Client, provider: ProviderProcess) -> None:
    await begin(client)
    (cookie,) = [each for each in client.cookie_jar or () if each.name == FLOW_COOKIE]
    assert cookie.has_nonstandard_attr("HttpOnly")
    assert cookie.get_nonstandard_attr("SameSite") == "Lax"
    client.set_cookie("localhost", FLOW_COOKIE, (cookie.value or "")[:-2] + "xx")
    path = await visit(await begin(new_client(client.app)))
    assert await kind_of(await client.get(path)) == "expired"


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ("access_denied", "cancelled"),
        ("redirect_uri_mismatch", "refused"),
        ("<script>alert(1)</script>", "refused"),
    ],
)
async def test_errors_of_the_provider_have_a_page(
    client: Client, provider: ProviderProcess, error: str, kind: str
) -> None:
    path = await visit(await begin(client))
    state = re.search("state=([^&]+)", path)
    assert state is not None
    query = {"error": error, "error_description": "<b>hunter2</b>", "state": state[1]}
    response = await client.get("/login/with/mine/callback/", query_string=query)
    page = await response.get_data(as_text=True)
    assert (response.status_code, await kind_of(response)) == (400, kind)
    assert "hunter2" not in page
    assert "alert(1)" not in page


async def test_response_without_a_code(client: Client, provider: ProviderProcess) -> None:
    path = re.sub("code=[^&]+&?", "", await visit(await begin(client)))
    assert await kind_of(await client.get(path)) == "rejected"


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
async def test_other_sites_cannot_start_a_login(client: Client, site: str) -> None:
    headers = {"Sec-Fetch-Site": site}
    assert (await client.post("/login/with/mine/", headers=headers)).status_code == 403
    assert (await client.get("/login/with/mine/")).status_code == 405


async def test_callback_accepts_the_redirect_of_another_site(
    client: Client, provider: ProviderProcess
) -> None:
    path = await visit(await begin(client))
    response = await client.get(path, headers={"Sec-Fetch-Site": "cross-site"})
    assert response.status_code == 303


@pytest.mark.parametrize("path", ["//evil.example", "https://evil.example/", "/\\evil.example"])
async def test_login_does_not_redirect_to_other_sites(
    client: Client, provider: ProviderProcess, path: str
) -> None:
    response = await log_in_with(client, f"/login/with/mine/?next={path}")
    assert response.location == "/users/"


async def test_unknown_provider_is_not_found(client: Client) -> None:
    assert (await client.post("/login/with/nobody/")).status_code == 404
    assert (await client.get("/login/with/nobody/callback/")).status_code == 404


async def test_pages_offer_each_provider(client: Client) -> None:
    for page in ("/login/?next=/account/", "/register/"):
        response = await client.get(page)
        assert "Set-Cookie" not in response.headers
        soup = BeautifulSoup(await response.get_data(as_text=True), "html.parser")
        labels = [each.get_text(strip=True) for each in soup.select(".provider-logins button")]
        assert labels == [f"Log in with {each}" for each in ("Mine", "Other", "GitHub", "Down")]
        form = soup.select_one(".provider-logins form")
        assert form is not None
        assert form["method"] == "post"
    soup = BeautifulSoup(
        await (await client.get("/login/?next=/account/")).get_data(as_text=True), "html.parser"
    )
    form = soup.select_one(".provider-logins form")
    assert form is not None
    assert form["action"] == "/login/with/mine/?next=/account/"


async def test_secrets_are_not_logged(
    client: Client, provider: ProviderProcess, caplog: pytest.LogCaptureFixture
) -> None:
    path = await visit(await begin(client))
    code = re.search("code=([^&]+)", path)
    assert code is not None
    provider.behave(claims={"nonce": "wrong"})
    await client.get(path)
    provider.behave(status={"/token": 500})
    await log_in_with(client)
    assert "login provider response rejected" in caplog.text
    assert "s3cret" not in caplog.text
    assert code[1] not in caplog.text


class TestGitHub:
    """GitHub has OAuth only: the API says who the user is."""

    PATH = "/login/with/github/"

    async def test_login_creates_an_account(
        self, client: Client, app: Quart, database: Database, provider: ProviderProcess
    ) -> None:
        assert (await log_in_with(client, self.PATH)).status_code == 303
        user = await user_by_email(database, "ada@example.com")
        assert user is not None
        assert user.username == "ada-github"
        # A renamed user with another address is the same.
        provider.behave(github_user={"id": 7, "login": "renamed"}, github_emails=[])
        again = new_client(app)
        assert (await log_in_with(again, self.PATH)).status_code == 303
        assert await is_logged_in(again)

    @pytest.mark.parametrize(
        ("behavior", "status", "kind"),
        [
            ({"github_emails": []}, 403, "unverified"),
            (
                {"github_emails": [{"email": "a@example.com", "primary": True, "verified": False}]},
                403,
                "unverified",
            ),
            (
                {"github_emails": [{"email": "a@example.com", "primary": False, "verified": True}]},
                403,
                "unverified",
            ),
            ({"github_emails": {"message": "rate limit"}}, 400, "rejected"),
            (
                {"github_emails": [{"email": "\ud800@a.example", "primary": True}]},
                403,
                "unverified",
            ),
            ({"github_user": {"login": "ada"}}, 400, "rejected"),
            ({"status": {"/login/oauth/access_token": 404}}, 400, "rejected"),
            ({"status": {"/user": 500}}, 503, "unavailable"),
            ({"status": {"/user/emails": 429}}, 503, "unavailable"),
        ],
        ids=str,
    )
    async def test_refusals(
        self,
        client: Client,
        provider: ProviderProcess,
        behavior: dict[str, Any],
        status: int,
        kind: str,
    ) -> None:
        provider.behave(**behavior)
        response = await log_in_with(client, self.PATH)
        assert (response.status_code, await kind_of(response)) == (status, kind)

    async def test_code_of_another_login_is_refused(
        self, client: Client, app: Quart, provider: ProviderProcess
    ) -> None:
        stolen = re.search("code=[^&]+", await visit(await begin(new_client(app), self.PATH)))
        assert stolen is not None
        own = await visit(await begin(client, self.PATH))
        response = await client.get(re.sub("code=[^&]+", stolen[0], own))
        assert await kind_of(response) == "rejected"
