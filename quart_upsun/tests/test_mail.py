"""Mail: from the transaction that posts it to a real mail server, or to where else it goes."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, cast
from uuid import uuid4

import asyncpg
import pytest
from bs4 import BeautifulSoup
from jinja2 import ChoiceLoader, DictLoader
from pydantic import SecretStr
from quart import Quart
from sqlalchemy import URL, func, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from quart_upsun.database import Database, DatabaseUnavailableError
from quart_upsun.database.url import parse_database_url
from quart_upsun.jobs import failed
from quart_upsun.jobs import runner as running
from quart_upsun.jobs.models import Job, JobLog
from quart_upsun.jobs.queue import JobContext
from quart_upsun.mail import delivery as delivering
from quart_upsun.mail import outbox, rendering, transports
from quart_upsun.mail.delivery import Delivery, external_url
from quart_upsun.mail.letters import Letter
from quart_upsun.mail.models import Mail
from quart_upsun.platform import Environment
from quart_upsun.testing.certificates import server_context
from quart_upsun.testing.smtp import MailServer, mail_server
from quart_upsun.tests.sample import create_app
from quart_upsun.tests.sample.settings import Settings

ORIGIN = "https://www.example.com"
ADA = "ada@example.com"

TEMPLATES = {
    "mail/greeting.txt": (
        "Subject: Hello {{ name }}\n\nDear {{ name }},\n\nplease have a\nlook:\n\n{{ link }}\n\n"
        "It is on {{ origin }}.\n"
    ),
    "mail/broken.txt": "Subject: {{ nowhere }}\n\nText\n",
}


async def greeting(session: AsyncSession, data: dict[str, Any]) -> Letter | None:
    if data.get("gone"):
        return None
    name = await session.scalar(select(func.trim(data["name"])))
    link = external_url("about", token="t0ken")
    return Letter(data.get("to", ADA), "greeting", {"name": name, "link": link})


async def broken_template(session: AsyncSession, data: dict[str, Any]) -> Letter | None:
    return Letter(ADA, "broken")


async def broken_composer(session: AsyncSession, data: dict[str, Any]) -> Letter | None:
    raise KeyError(ADA)


COMPOSERS = {
    "greeting": greeting,
    "broken template": broken_template,
    "broken composer": broken_composer,
}


def of(app: Quart) -> Delivery:
    delivery: Delivery = app.extensions["quart_upsun"].mail
    return delivery


async def deliver(app: Quart) -> None:
    """Do all jobs that are due."""
    await app.extensions["quart_upsun"].jobs.run_due()


def database_of(app: Quart) -> Database:
    database: Database = app.extensions["quart_upsun"].database
    return database


@pytest.fixture
async def server() -> AsyncIterator[MailServer]:
    async with mail_server() as server:
        yield server


def settings_for(database_url: str | URL, **values: Any) -> Settings:
    options: Any = {"public_origin": ORIGIN, "run_jobs": False, **values}
    if "mail_url" in options:
        options["mail_url"] = SecretStr(options["mail_url"])
    return Settings(
        database_url=parse_database_url(database_url),
        secret_key=SecretStr("a key for tests, of no worth anywhere else"),
        **options,
    )


def on_upsun(kind: str, *, smtp_host: str = "", origin: str | None = ORIGIN) -> Environment:
    return Environment(
        name=f"{kind}-bvxea6i",
        type=kind,
        release="1f3a",
        branch="main",
        origin=origin,
        hosts=frozenset(),
        smtp_host=smtp_host,
    )


@asynccontextmanager
async def application(settings: Settings, *, serving: bool = False) -> AsyncIterator[Quart]:
    """The application with mails of the test's own; it delivers by itself only if it serves."""
    app = create_app(settings.model_copy(update={"run_jobs": serving}))
    of(app).composers = {**COMPOSERS}
    app.jinja_env.loader = ChoiceLoader([DictLoader(TEMPLATES), cast(Any, app.jinja_env.loader)])
    if serving:
        async with app.test_app():
            yield app
    else:
        yield app
        await database_of(app).close()


@pytest.fixture
async def app(database_url: str, server: MailServer) -> AsyncIterator[Quart]:
    async with application(settings_for(database_url, mail_url=server.url)) as app:
        yield app


async def post(app: Quart, kind: str = "greeting", **data: Any) -> None:
    async with app.app_context(), database_of(app).write() as session:
        await outbox.send_later(session, kind, **({"name": "ada"} | data))


@dataclass(frozen=True)
class Row:
    """A mail that waits, or was given up."""

    id: int
    status: str
    attempts: int
    data: dict[str, Any]
    error: str
    is_due: bool


async def rows(app: Quart) -> list[Row]:
    async with database_of(app).read() as session:
        error = (
            select(JobLog.traceback["exception_message"].astext)
            .where(JobLog.job_id == Job.id, JobLog.traceback.is_not(None))
            .order_by(JobLog.id.desc())
            .limit(1)
            .scalar_subquery()
        )
        found = await session.execute(
            select(
                Job.id,
                Job.status,
                Job.attempts,
                Job.payload,
                error,
                Job.execute_after <= func.now(),
            ).order_by(Job.id)
        )
        return [
            Row(number, status, attempts, json.loads(payload or b""), words or "", is_due)
            for number, status, attempts, payload, words, is_due in found
        ]


async def row(app: Quart) -> Row:
    (only,) = await rows(app)
    return only


async def mails(app: Quart) -> list[Mail]:
    async with database_of(app).read() as session:
        return list(await session.scalars(select(Mail).order_by(Mail.id)))


async def make_due(app: Quart) -> None:
    async with database_of(app).write() as session:
        await session.execute(update(Job).values(execute_after=func.now()))


def logged(caplog: pytest.LogCaptureFixture, level: int = logging.INFO) -> list[str]:
    """What the application itself has logged, at this level and above."""
    return [
        str(record.msg)
        for record in caplog.records
        if record.name.startswith("quart_upsun.") and record.levelno >= level
    ]


async def test_a_mail_is_sent_once_its_transaction_is_committed(
    database_url: str, server: MailServer
) -> None:
    settings = settings_for(database_url, mail_url=server.url)
    async with application(settings, serving=True) as app, app.app_context():
        async with database_of(app).write() as session:
            async with session.begin_nested():
                await outbox.send_later(session, "greeting", name="ada")
            await outbox.send_later(session, "greeting", name="grace")
            await deliver(app)
            assert server.connections == 0
        messages = await server.arrived(2)
    assert {str(message["Subject"]) for message in messages} == {"Hello ada", "Hello grace"}

    message = next(each for each in messages if each["Subject"] == "Hello ada")
    assert message["To"] == ADA
    assert message["From"] == "noreply@www.example.com"
    assert message["Message-ID"].endswith("@www.example.com>")
    assert message["Auto-Submitted"] == "auto-generated"
    assert message["Date"].datetime.tzinfo is not None
    plain, html = (message.get_body(preferencelist=(kind,)) for kind in ("plain", "html"))
    assert plain is not None
    assert html is not None
    link = f"{ORIGIN}/about/?token=t0ken"
    assert "Dear ada," in plain.get_content()
    assert f"\n{link}\n" in plain.get_content()
    soup = BeautifulSoup(html.get_content(), "html.parser")
    assert [a["href"] for a in soup.select("a")] == [link]
    assert "please have a look:" in soup.get_text()


async def test_a_mail_of_a_change_that_was_undone_is_not_sent(
    app: Quart, server: MailServer
) -> None:
    with suppress(ZeroDivisionError):
        async with app.app_context(), database_of(app).write() as session:
            await outbox.send_later(session, "greeting", name="ada")
            raise ZeroDivisionError
    await post(app, gone=True)
    assert len(await rows(app)) == 1  # the other one, which nobody needs any more
    await deliver(app)
    assert server.connections == 0
    assert await rows(app) == []


async def test_no_connection_to_the_database_is_held_while_sending(
    app: Quart, server: MailServer
) -> None:
    held: list[int] = []
    engine = database_of(app).engine
    server.on_data = lambda: held.append(cast(Any, engine.pool).checkedout())
    await post(app)
    await deliver(app)
    assert held == [0]


@pytest.mark.parametrize("failure", ["450 Later, <ada@example.com>", "no server"])
async def test_what_fails_for_now_is_tried_again(
    app: Quart, server: MailServer, failure: str, caplog: pytest.LogCaptureFixture
) -> None:
    await post(app)
    url = of(app).transport
    if failure == "no server":
        async with mail_server() as stopped:
            of(app).transport = transports.SmtpTransport("127.0.0.1", stopped.port)
    else:
        server.answers["RCPT"] = failure
    await deliver(app)
    waiting = await row(app)
    assert (waiting.status, waiting.attempts, waiting.is_due) == ("queued", 1, False)
    assert waiting.error
    assert failure[:3] in waiting.error or failure == "no server"
    (line,) = logged(caplog, logging.WARNING)
    assert "job attempt failed" in line
    assert "'kind': 'greeting'" in line
    assert not any(ADA in line or "t0ken" in line for line in logged(caplog))

    server.answers.clear()
    of(app).transport = url
    await deliver(app)
    assert server.messages == []
    await make_due(app)
    await deliver(app)
    assert len(server.messages) == 1
    assert await rows(app) == []


async def test_attempts_end_after_about_a_day(
    app: Quart, server: MailServer, caplog: pytest.LogCaptureFixture
) -> None:
    assert 20 < sum(delivering.SEND_MAIL.backoff_seconds) / 3600 < 28
    server.answers["DATA"] = "451 Later"
    await post(app)
    for attempt in range(len(delivering.SEND_MAIL.backoff_seconds) + 1):
        assert (await row(app)).attempts == attempt
        await make_due(app)
        await deliver(app)
    given_up = await row(app)
    assert given_up.status == "failed"
    assert given_up.error == "451 Later"
    assert len(logged(caplog, logging.ERROR)) == 1


@pytest.mark.parametrize("command", ["MAIL", "RCPT", "DATA"])
async def test_what_is_refused_is_given_up_and_kept(
    app: Quart, server: MailServer, command: str, caplog: pytest.LogCaptureFixture
) -> None:
    server.answers[command] = f"550 No {ADA} here"
    await post(app)
    await deliver(app)
    refused = await row(app)
    assert refused.status == "failed"
    assert refused.error == f"550 No {ADA} here"
    (line,) = logged(caplog, logging.ERROR)
    assert f"'job_id': {refused.id}" in line
    assert "'kind': 'greeting'" in line
    assert ADA not in caplog.text

    server.answers.clear()
    await post(app, name="grace")
    await deliver(app)
    async with database_of(app).write() as session:
        assert await failed.retry_job(session, refused.id) == "mail"
    await deliver(app)
    assert [str(message["Subject"]) for message in server.messages] == ["Hello grace", "Hello ada"]
    assert await rows(app) == []


async def test_a_reason_that_is_not_utf_8_is_kept(app: Quart, server: MailServer) -> None:
    server.answers["RCPT"] = cast(Any, b"550 refus\xe9")
    await post(app)
    await deliver(app)
    refused = await row(app)
    assert refused.status == "failed"
    assert refused.error == "550 refus?"


async def test_what_is_being_sent_is_not_sent_beside_it(
    app: Quart, database_url: str, server: MailServer
) -> None:
    server.hold.clear()
    await post(app)
    sending = asyncio.create_task(deliver(app))
    await server.is_holding()
    async with application(settings_for(database_url, mail_url=server.url)) as other:
        await deliver(other)
    async with database_of(app).write() as session:
        assert await failed.retry_job(session, (await row(app)).id) is None
    server.hold.set()
    await sending
    assert server.connections == 1
    assert await rows(app) == []


async def test_what_a_killed_process_left_is_taken_up_again(app: Quart, server: MailServer) -> None:
    await post(app)
    async with database_of(app).write() as session:
        minute = text("now() - interval '1 min'")
        of_the_dead = {"status": "picked", "queue_manager_id": str(uuid4()), "heartbeat": minute}
        await session.execute(update(Job).values(execute_after=minute, **of_the_dead))
    await deliver(app)
    assert len(server.messages) == 1
    assert await rows(app) == []


async def test_what_was_sent_is_not_sent_again_because_the_database_goes_away(
    app: Quart,
    server: MailServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def complete(self: JobContext) -> NoReturn:
        raise DatabaseUnavailableError

    monkeypatch.setattr(JobContext, "complete", complete)
    await post(app)
    await deliver(app)
    assert len(server.messages) == 1
    assert await rows(app) == []
    assert "mail sent but not recorded" in logged(caplog, logging.WARNING)[0]


async def test_each_attempt_has_the_same_message_id(app: Quart) -> None:
    await post(app)
    await post(app)
    ids = []
    async with app.app_context():
        for number, waiting in enumerate([*await rows(app)] * 2):
            attempt = JobContext(waiting.id, waiting.data, number, database_of(app))
            message = await of(app).message(attempt)
            assert message is not None
            ids.append(message["Message-ID"])
    assert ids[:2] == ids[2:]
    assert len(set(ids)) == 2


async def test_several_processes_send_each_mail_once(
    app: Quart, database_url: str, server: MailServer
) -> None:
    """And all of them together no more at the same time than one may."""
    server.delay = 0.02
    for number in range(20):
        await post(app, name=f"n{number}")
    async with application(settings_for(database_url, mail_url=server.url)) as other:
        await asyncio.gather(deliver(app), deliver(other))
    subjects = [str(message["Subject"]) for message in server.messages]
    assert sorted(subjects) == sorted(f"Hello n{number}" for number in range(20))
    assert 1 < server.most_at_once <= delivering.MAX_CONNECTIONS
    assert await rows(app) == []


@pytest.mark.parametrize("kind", ["development", "staging", "unknown"])
async def test_no_mail_leaves_a_preview(
    database_url: str, server: MailServer, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings = settings_for(
        database_url,
        mail_url=server.url,
        platform=on_upsun(kind, smtp_host="127.0.0.1"),
    )
    connection = await asyncpg.connect(database_url)
    await connection.execute(
        "INSERT INTO sanitizations (environment, finished_at) VALUES ($1, now())", f"{kind}-bvxea6i"
    )
    await connection.close()
    async with application(settings) as app:
        await post(app)
        await deliver(app)
        assert await rows(app) == []
        (kept,) = await mails(app)
        async with database_of(app).read() as session:
            assert [mail.id for mail in await outbox.list_kept_mails(session)] == [kept.id]
            assert await outbox.list_kept_mails(session, before=kept.id) == []
        assert (await app.test_client().get("/dev/mail/")).status_code == 404
    assert server.connections == 0
    written = rendering.parse_message(kept.message)
    assert written.subject == "Hello ada"
    (line,) = logged(caplog)[-1:]
    for part in ("mail kept", "'kind': 'greeting'", f"{ORIGIN}/about/?token="):
        assert part in line


async def test_a_mail_is_kept_by_who_has_it_in_the_end(database_url: str) -> None:
    async with application(settings_for(database_url)) as app:

        class Slow(transports.KeepTransport):
            async def send(self, mail: transports.OutgoingMail) -> bool:
                async with database_of(app).write() as session:
                    await session.execute(update(Job).values(queue_manager_id=None))
                return await super().send(mail)

        of(app).transport = Slow()
        await post(app)
        await deliver(app)
        assert await mails(app) == []
        assert len(await rows(app)) == 1


async def test_production_without_a_mail_server_says_so_and_goes_on(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with application(settings_for(database_url, platform=on_upsun("production"))) as app:
        await post(app)
        await post(app)
        await deliver(app)
        assert [mail.status for mail in await rows(app)] == ["failed", "failed"]
        assert all("Mail is disabled" in mail.error for mail in await rows(app))
        assert await mails(app) == []
    lines = logged(caplog, logging.WARNING)
    assert len(lines) == 2
    assert all("mail disabled" in line for line in lines)
    assert not any("t0ken" in line or ADA in line for line in logged(caplog))


async def test_without_an_origin_no_mail_is_made(database_url: str, server: MailServer) -> None:
    settings = settings_for(
        database_url,
        public_origin="",
        mail_url=server.url,
        platform=on_upsun("production", origin=None),
    )
    async with application(settings) as app:
        await post(app)
        await deliver(app)
        waiting = await row(app)
    assert waiting.status == "queued"
    assert "PUBLIC_ORIGIN" in waiting.error


async def test_links_never_lead_where_a_request_says(app: Quart, server: MailServer) -> None:
    @app.post("/post-a-mail")
    async def post_a_mail() -> str:
        async with database_of(app).write() as session:
            await outbox.send_later(session, "greeting", name="ada")
        await deliver(app)
        return external_url("home")

    response = await app.test_client().post(
        "/post-a-mail", headers={"Host": "evil.example", "X-Forwarded-Host": "evil.example"}
    )
    assert await response.get_data(as_text=True) == f"{ORIGIN}/"
    assert "evil" not in server.messages[0].as_string()


async def test_nothing_gets_into_a_header(app: Quart, server: MailServer) -> None:
    await post(app, name="x\nBcc: evil@example.com")
    await post(app, name="x\r\nBcc: evil@example.com")
    await post(app, to=f"{ADA}, evil@example.com")
    await post(app, to=f"{ADA}\nBcc: evil@example.com")
    await post(app, to="")
    await post(app, name="x\x0b\x85\u2028Bcc: evil@example.com")
    await post(app, name="x\n\nhttps://evil.example/login\n\ny")
    await deliver(app)
    assert len(await rows(app)) == 5
    # Sent at the same time, they arrive in any order.
    by_subject = {str(message["Subject"]): message for message in server.messages}
    assert set(by_subject) == {"Hello xBcc: evil@example.com", "Hello x"}
    assert server.recipients == [ADA, ADA]
    assert all(message["Bcc"] is None for message in server.messages)
    html = by_subject["Hello x"].get_body(preferencelist=("html",))
    assert html is not None
    links = BeautifulSoup(html.get_content(), "html.parser").select("a")
    assert [a["href"] for a in links] == [f"{ORIGIN}/about/?token=t0ken"]


async def test_a_mail_that_cannot_be_made_stops_no_other(
    app: Quart, server: MailServer, caplog: pytest.LogCaptureFixture
) -> None:
    for kind in ("unheard of", "broken template", "broken composer", "greeting"):
        await post(app, kind)
    await deliver(app)
    assert len(server.messages) == 1
    waiting = await rows(app)
    kinds = [mail.data["kind"] for mail in waiting]
    assert kinds == ["unheard of", "broken template", "broken composer"]
    assert all(mail.status == "queued" and mail.error for mail in waiting)
    lines = logged(caplog, logging.WARNING)
    assert len(lines) == 3
    assert not any(ADA in line for line in lines)
    assert any("test_mail.py:" in line for line in lines)


async def test_the_console_keeps_files(
    database_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(transports, "MAX_SAVED_MAILS", 3)
    directory = tmp_path / "mail"
    async with application(settings_for(database_url)) as app:
        # Without debugging it may be a site that others reach.
        assert (await app.test_client().get("/dev/mail/")).status_code == 404
    monkeypatch.setattr(transports, "MAIL_DIRECTORY", directory)
    async with application(settings_for(database_url, flask_debug=True)) as app:
        client = app.test_client()
        for name in ("one", "two", "three", "<script>alert(1)</script>"):
            await post(app, name=name)
            await deliver(app)
        assert await rows(app) == []
        assert await mails(app) == []
        assert any("please have a" in line for line in logged(caplog))
        names = [path.name for path in transports.saved_mails(directory)]
        assert len(names) == 3
        assert len(list(directory.iterdir())) == 3

        (tmp_path / "secret.eml").write_text("Subject: secret\n\nsecret\n")
        other = names[0].replace(".eml", "-secret.eml")
        (directory / other).write_text("Subject: secret\n\nsecret\n")
        for path in ("..%2Fsecret.eml", "%2e%2e%2fsecret.eml", other, f"{names[0]}%00"):
            assert (await client.get(f"/dev/mail/{path}/")).status_code == 404
        (directory / names[0]).unlink()
        assert (await client.get(f"/dev/mail/{names[0]}/")).status_code == 404


@pytest.mark.parametrize(
    ("line", "links"),
    [
        ("see https://a.example/x?y=1, or not", ["https://a.example/x?y=1"]),
        ("javascript:alert(1) data:text/html,x ftp://a.example", []),
        ('http://a.example/"onclick="x', ["http://a.example/"]),
    ],
)
def test_links_in_text(line: str, links: list[str]) -> None:
    pieces = rendering.split_links(line)
    assert "".join(piece for piece, _ in pieces) == line
    assert [piece for piece, is_link in pieces if is_link] == links


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("smtp://mail.example", (25, False, None)),
        ("smtp://mail.example:2525", (2525, False, None)),
        ("smtp://u:p@mail.example", (587, False, True)),
        ("smtp://u:p@localhost", (587, False, None)),
        ("smtp://u:p@127.0.0.1:1025", (1025, False, None)),
        ("smtps://u:p@mail.example", (465, True, False)),
    ],
)
def test_a_login_that_leaves_the_machine_insists_on_tls(
    url: str, expected: tuple[int, bool, bool | None]
) -> None:
    for platform in (None, on_upsun("production", smtp_host="smtp.internal")):
        smtp = transports.choose_transport(
            settings_for("postgresql://x/y", mail_url=url, platform=platform)
        )
        assert isinstance(smtp, transports.SmtpTransport)
        assert (smtp.port, smtp.implicit_tls, smtp.start_tls) == expected


def test_how_mail_leaves_where_nothing_is_set() -> None:
    def choose(**values: Any) -> transports.Transport:
        return transports.choose_transport(settings_for("postgresql://x/y", **values))

    laptop = choose(flask_debug=True)
    assert isinstance(laptop, transports.ConsoleTransport)
    assert laptop.directory is not None
    elsewhere = choose()
    assert isinstance(elsewhere, transports.ConsoleTransport)
    assert elsewhere.directory is None
    relay = choose(platform=on_upsun("production", smtp_host="smtp.internal"))
    assert isinstance(relay, transports.SmtpTransport)
    assert (relay.host, relay.port, relay.start_tls) == ("smtp.internal", 25, False)
    console = choose(platform=on_upsun("production"), mail_url="console:", flask_debug=True)
    assert isinstance(console, transports.ConsoleTransport)
    assert console.directory is None


@pytest.mark.parametrize("scheme", ["smtp", "smtps"])
async def test_a_login_through_tls_with_a_certificate_that_is_checked(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    certificate, context = await server_context(tmp_path, "localhost")
    options = {"start_tls" if scheme == "smtp" else "tls": context}
    async with mail_server(**options) as server:
        settings = settings_for(
            database_url, mail_url=f"{scheme}://us%40er:p%2Fss%3A@localhost:{server.port}"
        )
        async with application(settings) as app:
            await post(app)
            await deliver(app)
            assert server.messages == []
            assert "certificate" in (await row(app)).error
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        async with application(settings) as app:
            await make_due(app)
            await deliver(app)
            assert await rows(app) == []
    assert server.logins == [("us@er", "p/ss:")]
    assert server.encrypted == [True]


async def test_the_mail_servers_password_is_not_told(
    database_url: str, server: MailServer, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"smtp://user:hunter2@127.0.0.1:{server.port}"  # which offers no login without TLS
    async with application(settings_for(database_url, mail_url=url)) as app:
        await post(app)
        await deliver(app)
        waiting = await row(app)
    assert waiting.status == "queued"
    assert "AUTH" in waiting.error
    assert server.messages == []
    assert "AUTH" in logged(caplog, logging.WARNING)[0]
    assert "hunter2" not in caplog.text + waiting.error + repr(vars(app))


async def test_a_process_that_stops_finishes_a_mail_and_begins_none(
    database_url: str, server: MailServer
) -> None:
    server.hold.clear()
    settings = settings_for(database_url, mail_url=server.url)
    async with application(settings, serving=True) as app:
        await post(app)
        await server.is_holding()
        app.extensions["quart_upsun"].draining.set()
        await asyncio.sleep(0)  # until the runner has heard of it
        await post(app, name="grace")
        server.hold.set()
    assert [str(message["Subject"]) for message in server.messages] == ["Hello ada"]
    async with application(settings) as app:
        assert [mail.data["data"]["name"] for mail in await rows(app)] == ["grace"]


async def test_a_process_that_stops_does_not_wait_for_long(
    database_url: str, server: MailServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it was sending is somebody else's, at once, and no attempt of it is lost."""
    monkeypatch.setattr(running, "SHUTDOWN_SECONDS", 0.05)
    server.hold.clear()
    settings = settings_for(database_url, mail_url=server.url)
    async with application(settings, serving=True) as app:
        await post(app)
        await server.is_holding()
    async with application(settings) as app:
        left = await row(app)
        assert (left.status, left.attempts, left.is_due) == ("queued", 0, True)


async def test_more_mails_than_are_sent_at_once_are_sent_as_room_gets_free(
    database_url: str, server: MailServer
) -> None:
    server.hold.clear()
    count = 2 * delivering.MAX_CONNECTIONS + 1
    async with application(settings_for(database_url, mail_url=server.url), serving=True) as app:
        for _ in range(count):
            await post(app)
        await server.until(lambda: server.at_once == delivering.MAX_CONNECTIONS)
        server.hold.set()
        await server.arrived(count)
    assert server.most_at_once == delivering.MAX_CONNECTIONS
