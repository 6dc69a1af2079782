"""The second step of a login: what is accepted, and everything that is refused."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from quart import Quart
from quart.testing import QuartClient as Client
from sqlalchemy import select, text

from app.settings import Settings
from app.user import accounts, emails, pending_login
from app.user.audit_trail import Event
from app.user.two_factor import enrolment, trusted_browsers, verification
from quart_upsun.database import Database
from quart_upsun.security import signing
from quart_upsun.security.limits import Limit
from quart_upsun.security.models import AuditEvent
from tests.features.factories import (
    DEVICE_COOKIE,
    LOGIN_COOKIE,
    Person,
    cookies_of,
    invalid_fields,
    new_client,
)
from tests.features.two_factor.factories import (
    CODE_PAGE,
    PAGE,
    RECOVERY_PAGE,
    Authenticator,
    Clock,
    enrol,
    is_logged_in,
    log_in_without_code,
    only,
    soup_of,
    submit_password,
)

PENDING_COOKIE, TRUSTED_COOKIE = (
    f"{Settings.name}-{kind}" for kind in ("pending-login", "trusted-browser")
)


@pytest.fixture
async def browser(app: Quart, ada: Person, phone: Authenticator) -> Client:
    """A browser in which Ada has entered her password."""
    browser = new_client(app)
    await submit_password(browser, ada)
    return browser


async def enter(browser: Client, code: str, path: str = CODE_PAGE, **form: str) -> int:
    return (await browser.post(path, form={"code": code, **form})).status_code


async def with_cookie(app: Quart, name: str, value: str) -> Client:
    browser = new_client(app)
    browser.set_cookie("localhost", name, value)
    return browser


async def kinds(database: Database, person: Person) -> list[str]:
    async with database.read() as session:
        query = select(AuditEvent.kind).where(AuditEvent.user_id == person.id)
        return list((await session.scalars(query.order_by(AuditEvent.id))).all())


async def test_login_is_complete_after_the_code(
    browser: Client, ada: Person, phone: Authenticator, database: Database
) -> None:
    before = await kinds(database, ada)
    assert not await is_logged_in(browser)
    field = only(await soup_of(await browser.get(CODE_PAGE)), "#codeForm input[name=code]")
    assert (field["autocomplete"], field["inputmode"]) == ("one-time-code", "numeric")
    assert (await kinds(database, ada)) == before
    response = await browser.post(CODE_PAGE, form={"code": phone.code()})
    assert (response.status_code, response.location) == (303, "/users/")
    assert await is_logged_in(browser)
    assert (await kinds(database, ada))[len(before) :] == [Event.LOGGED_IN]
    assert PENDING_COOKIE not in cookies_of(browser)


async def test_login_keeps_its_target(app: Quart, ada: Person, phone: Authenticator) -> None:
    browser = new_client(app)
    await browser.post("/login/?next=/account/", form=ada.login)
    response = await browser.post(CODE_PAGE, form={"code": phone.code()})
    assert response.location == "/account/"


@pytest.mark.parametrize("steps", [-1, 0, 1])
async def test_codes_of_neighboring_steps_are_accepted(
    browser: Client, phone: Authenticator, clock: Clock, steps: int
) -> None:
    clock.step += 5
    assert await enter(browser, phone.code(steps)) == 303


async def test_typed_codes_may_have_spaces_and_wide_digits(
    browser: Client, phone: Authenticator
) -> None:
    wide = phone.code().translate({ord("0") + n: 0xFF10 + n for n in range(10)})
    assert await enter(browser, f" {wide[:3]} {wide[3:]} ") == 303


Attack = Callable[[Client, Authenticator], Awaitable[int]]


async def wrong_code(browser: Client, phone: Authenticator) -> int:
    return await enter(browser, phone.wrong_code())


async def old_code(browser: Client, phone: Authenticator) -> int:
    phone.clock.step += 5
    return await enter(browser, phone.code(-2))


async def future_code(browser: Client, phone: Authenticator) -> int:
    return await enter(browser, phone.code(2))


async def no_code(browser: Client, phone: Authenticator) -> int:
    return await enter(browser, "")


async def code_of_the_enrolment(browser: Client, phone: Authenticator) -> int:
    return await enter(browser, phone.code(-1))  # valid for its time, but used


async def code_of_another_user(browser: Client, phone: Authenticator) -> int:
    other = new_client(browser.app)
    await (await Person().register(browser.app)).log_in(other)
    phone.clock.step -= 1
    return await enter(browser, (await enrol(other, phone.clock)).code())


async def recovery_code_of_another_user(browser: Client, phone: Authenticator) -> int:
    other = new_client(browser.app)
    await (await Person().register(browser.app)).log_in(other)
    codes = (await enrol(other, phone.clock)).recovery_codes
    return await enter(browser, codes[0], RECOVERY_PAGE)


async def recovery_code_as_code(browser: Client, phone: Authenticator) -> int:
    return await enter(browser, phone.recovery_codes[0])


async def code_as_recovery_code(browser: Client, phone: Authenticator) -> int:
    return await enter(browser, phone.code(), RECOVERY_PAGE)


async def digest_of_a_recovery_code(browser: Client, phone: Authenticator) -> int:
    return await enter(browser, "0" * 24, RECOVERY_PAGE)


@pytest.mark.parametrize(
    "attack",
    [
        wrong_code,
        old_code,
        future_code,
        no_code,
        code_of_the_enrolment,
        code_of_another_user,
        recovery_code_of_another_user,
        recovery_code_as_code,
        code_as_recovery_code,
        digest_of_a_recovery_code,
    ],
)
async def test_refused_codes(browser: Client, phone: Authenticator, attack: Attack) -> None:
    assert await attack(browser, phone) == 200
    assert LOGIN_COOKIE not in cookies_of(browser)
    assert not await is_logged_in(browser)


async def test_rejected_codes_are_audited(
    browser: Client, ada: Person, phone: Authenticator, database: Database
) -> None:
    await enter(browser, phone.wrong_code())
    assert (await kinds(database, ada))[-1] == Event.CODE_REJECTED


async def test_code_is_accepted_once(
    app: Quart, browser: Client, ada: Person, phone: Authenticator
) -> None:
    thief = new_client(app)
    await submit_password(thief, ada)
    code = phone.code()
    assert await enter(browser, code) == 303
    assert await enter(thief, code) == 200
    assert await enter(thief, phone.code(-1)) == 200  # the code before it
    assert not await is_logged_in(thief)


async def test_of_concurrent_requests_with_one_code_one_is_accepted(
    app: Quart, ada: Person, phone: Authenticator
) -> None:
    browsers = [new_client(app) for _ in range(4)]
    for each in browsers:
        await submit_password(each, ada)
    for path, code in ((CODE_PAGE, phone.code()), (RECOVERY_PAGE, phone.recovery_codes[0])):
        found = await asyncio.gather(*(enter(each, code, path) for each in browsers))
        assert sorted(found) == [200, 200, 200, 303]
        for each in browsers:
            await submit_password(each, ada)


@pytest.mark.parametrize("kind", ["code", "recovery code"])
async def test_second_use_waits_for_the_first_and_is_refused(
    app: Quart, ada: Person, phone: Authenticator, database: Database, kind: str
) -> None:
    """The deterministic form of the test above: the first transaction is open all the time."""

    async def use() -> bool:
        async with app.app_context(), database.write() as session:
            if kind == "code":
                return await enrolment.use_code(session, ada.id, phone.code())
            user = await accounts.get_user(session, ada.id)
            assert user is not None
            code = phone.recovery_codes[0].replace("-", "")
            return await enrolment.use_recovery_code(session, user, code)

    async def wait_for_lock() -> None:
        waiting = text(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        async with asyncio.timeout(10):
            while True:
                async with database.read() as session:
                    if await session.scalar(waiting):
                        return
                await asyncio.sleep(0.01)

    async with app.app_context(), database.write() as session:
        if kind == "code":
            assert await enrolment.use_code(session, ada.id, phone.code())
        else:
            user = await accounts.get_user(session, ada.id)
            assert user is not None
            code = phone.recovery_codes[0].replace("-", "")
            assert await enrolment.use_recovery_code(session, user, code)
        second = asyncio.create_task(use())
        await wait_for_lock()
    assert await second is False


async def test_recovery_code_works_once_and_is_mailed(
    app: Quart, browser: Client, ada: Person, phone: Authenticator, database: Database
) -> None:
    code = phone.recovery_codes[4]
    assert await enter(browser, code.lower().replace("-", " "), RECOVERY_PAGE) == 303
    assert await is_logged_in(browser)
    assert Event.RECOVERY_CODE_USED in await kinds(database, ada)
    page = await (await browser.get(PAGE)).get_data(as_text=True)
    assert "9 of 10 recovery codes" in page
    thief = new_client(app)
    await submit_password(thief, ada)
    response = await thief.post(RECOVERY_PAGE, form={"code": code})
    assert invalid_fields(await response.get_data(as_text=True)) == ["code"]
    assert await enter(thief, phone.recovery_codes[5], RECOVERY_PAGE) == 303


@pytest.mark.parametrize("path", [CODE_PAGE, RECOVERY_PAGE])
async def test_without_a_pending_login_no_code_is_checked(
    app: Quart, ada: Person, phone: Authenticator, path: str
) -> None:
    browser = new_client(app)
    for response in (await browser.get(path), await browser.post(path, form={"code": "123456"})):
        assert (response.status_code, response.location) == (303, "/login/")


async def test_pending_login_expires(
    browser: Client, phone: Authenticator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pending_login, "LIFETIME_SECONDS", -1)
    response = await browser.post(CODE_PAGE, form={"code": phone.code()})
    assert (response.status_code, response.location) == (303, "/login/")
    assert not await is_logged_in(browser)


async def test_pending_login_ends_with_the_sessions(
    browser: Client, ada: Person, phone: Authenticator, database: Database
) -> None:
    async with database.write() as session:
        await accounts.end_sessions(session, ada.id, actor_id=ada.id)
    assert (await browser.post(CODE_PAGE, form={"code": phone.code()})).location == "/login/"
    assert not await is_logged_in(browser)


async def test_altered_pending_cookie_is_refused(
    app: Quart, browser: Client, ada: Person, phone: Authenticator
) -> None:
    cookie = cookies_of(browser)[PENDING_COOKIE]
    grace = await Person().register(app)
    async with app.app_context():
        other_purpose = signing.sign("device", [grace.id, 1, False, None])
    for value in (cookie[:-3] + "abc", "x" + cookie, other_purpose, ""):
        altered = await with_cookie(app, PENDING_COOKIE, value)
        response = await altered.post(CODE_PAGE, form={"code": phone.code()})
        assert response.location == "/login/"
        assert not await is_logged_in(altered)


async def test_pending_cookie_is_not_a_login(app: Quart, browser: Client) -> None:
    cookie = cookies_of(browser)[PENDING_COOKIE]
    for name in (LOGIN_COOKIE, DEVICE_COOKIE, TRUSTED_COOKIE):
        other = await with_cookie(app, name, cookie)
        assert not await is_logged_in(other)
    for path in (PAGE, "/users/", "/account/"):
        assert (await browser.get(path)).location.startswith("/login/")
    assert (await browser.post(f"{PAGE}disable/")).status_code == 401


async def test_attempts_are_limited_with_retry_after(browser: Client, phone: Authenticator) -> None:
    for _ in range(verification.CLIENT_CODE_LIMIT.count):
        assert await enter(browser, phone.wrong_code()) == 200
    response = await browser.post(CODE_PAGE, form={"code": phone.code()})
    assert response.status_code == 429
    assert int(response.headers["Retry-After"]) >= 1
    assert "Too many incorrect codes" in await response.get_data(as_text=True)
    # The owner can still use a recovery code.
    assert await enter(browser, phone.recovery_codes[0], RECOVERY_PAGE) == 303


async def test_recovery_attempts_are_limited(browser: Client, phone: Authenticator) -> None:
    for _ in range(verification.RECOVERY_LIMIT.count):
        assert await enter(browser, "0" * 24, RECOVERY_PAGE) == 200
    response = await browser.post(RECOVERY_PAGE, form={"code": phone.recovery_codes[0]})
    assert response.status_code == 429
    assert int(response.headers["Retry-After"]) >= 1


async def test_attempts_of_all_clients_are_limited_but_not_those_of_known_devices(
    app: Quart, client: Client, ada: Person, phone: Authenticator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An attacker who knows the password can neither guess with more addresses nor lock out Ada."""
    count_request = Limit.count_request

    async def count_other_limits(self: Limit, subject: str) -> int:
        return 0 if self.name in {"login", "login-code"} else await count_request(self, subject)

    monkeypatch.setattr(Limit, "count_request", count_other_limits)
    device = cookies_of(client)[DEVICE_COOKIE]
    thief = new_client(app)
    await submit_password(thief, ada)
    refused = 0
    for number in range(verification.ACCOUNT_CODE_LIMIT.count + 2):
        response = await thief.post(
            CODE_PAGE,
            form={"code": phone.wrong_code()},
            scope_base={"client": (f"198.51.100.{number}", 0)},
        )
        refused += response.status_code == 429
    assert refused == 2
    known = await with_cookie(app, DEVICE_COOKIE, device)
    await submit_password(known, ada)
    assert await enter(known, phone.code()) == 303


async def test_trusted_browser_needs_no_code(
    browser: Client, ada: Person, phone: Authenticator
) -> None:
    assert await enter(browser, phone.code(), trust="y") == 303
    await browser.post("/logout/")
    await log_in_without_code(browser, ada)


async def test_browser_is_not_trusted_unless_asked(
    browser: Client, ada: Person, phone: Authenticator
) -> None:
    assert await enter(browser, phone.code()) == 303
    assert TRUSTED_COOKIE not in cookies_of(browser)
    await browser.post("/logout/")
    await submit_password(browser, ada)


@pytest.fixture
async def trusted(browser: Client, phone: Authenticator) -> str:
    """The cookie of a browser that Ada trusts."""
    assert await enter(browser, phone.code(), trust="y") == 303
    return cookies_of(browser)[TRUSTED_COOKIE]


async def test_trust_expires(
    app: Quart, ada: Person, trusted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trusted_browsers, "LIFETIME_SECONDS", -1)
    await submit_password(await with_cookie(app, TRUSTED_COOKIE, trusted), ada)


async def test_trusted_browser_of_another_user_counts_for_nobody_else(
    app: Quart, trusted: str, clock: Clock
) -> None:
    grace, browser = await Person().register(app), new_client(app)
    await grace.log_in(browser)
    await enrol(browser, clock)
    await submit_password(await with_cookie(app, TRUSTED_COOKIE, trusted), grace)


async def test_altered_trust_counts_for_nothing(app: Quart, ada: Person, trusted: str) -> None:
    async with app.app_context():
        device = signing.sign("device", [ada.id, 2])
    for value in (trusted[:-3] + "abc", device, ""):
        await submit_password(await with_cookie(app, TRUSTED_COOKIE, value), ada)


@pytest.mark.parametrize("change", ["sessions", "reset", "factor", "administrator"])
async def test_trust_ends_with_sessions_password_and_factor(
    app: Quart,
    browser: Client,
    ada: Person,
    phone: Authenticator,
    trusted: str,
    database: Database,
    clock: Clock,
    change: str,
) -> None:
    async with app.app_context(), database.write() as session:
        user = await accounts.get_user(session, ada.id)
        assert user is not None
        match change:
            case "sessions":
                await accounts.end_sessions(session, ada.id, actor_id=ada.id)
            case "reset":
                token = emails.create_reset_token(user)
            case "factor":
                await enrolment.disable(session, user)
            case "administrator":
                await enrolment.disable_for(session, user)
    if change == "reset":
        ada.password = "a new password 1"
        form = {"password": ada.password, "confirm": ada.password}
        assert (await new_client(app).post(f"/reset/{token}/", form=form)).status_code == 303
    if change in {"factor", "administrator"}:
        again = new_client(app)
        await log_in_without_code(again, ada)
        await enrol(again, clock)
    await submit_password(await with_cookie(app, TRUSTED_COOKIE, trusted), ada)


async def test_password_reset_does_not_bypass_the_code(
    app: Quart, ada: Person, phone: Authenticator, database: Database
) -> None:
    async with app.app_context(), database.read() as session:
        user = await accounts.get_user(session, ada.id)
        assert user is not None
        token = emails.create_reset_token(user)
    browser = new_client(app)
    form = {"password": "a new password 1", "confirm": "a new password 1"}
    assert (await browser.post(f"/reset/{token}/", form=form)).status_code == 303
    ada.password = "a new password 1"
    await submit_password(browser, ada)
    assert not await is_logged_in(browser)
