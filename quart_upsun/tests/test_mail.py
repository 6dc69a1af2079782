"""Mail: enqueueing, rendering, retries and transports, with a real SMTP server."""

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


def delivery_of(app: Quart) -> Delivery:
    delivery: Delivery = app.extensions["quart_upsun"].mail
    return delivery


async def deliver(app: Quart) -> None:
    """Run all jobs that are due."""
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
        secret_key=SecretStr("a secret key that is only for tests"),
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
    """Create the application with the composers of this test; it runs jobs only if it serves."""
    app = create_app(settings.model_copy(update={"run_jobs": serving}))
    delivery_of(app).composers = {**COMPOSERS}
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


async def enqueue_mail(app: Quart, kind: str = "greeting", **data: Any) -> None:
    async with app.app_context(), database_of(app).write() as session:
        await outbox.send_later(session, kind, **({"name": "ada"} | data))


@dataclass(frozen=True)
class Row:
    """A queued or failed mail job."""

    id: int
    status: str
    attempts: int
    data: dict[str, Any]
    error: str
    is_due: bool


async def rows(app: Quart) -> list[Row]:
    async with database_of(app).read() as session:
        last_error = (
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
                last_error,
                Job.execute_after <= func.now(),
            ).order_by(Job.id)
        )
        return [
            Row(job_id, status, attempts, json.loads(payload or b""), error or "", is_due)
            for job_id, status, attempts, payload, error, is_due in found
        ]


async def row(app: Quart) -> Row:
    (found,) = await rows(app)
    return found


async def mails(app: Quart) -> list[Mail]:
    async with database_of(app).read() as session:
        return list(await session.scalars(select(Mail).order_by(Mail.id)))


async def make_due(app: Quart) -> None:
    async with database_of(app).write() as session:
        await session.execute(update(Job).values(execute_after=func.now()))


def logged(caplog: pytest.LogCaptureFixture, level: int = logging.INFO) -> list[str]:
    """Return what the toolkit has logged at this level or above."""
    return [
        str(record.msg)
        for record in caplog.records
        if record.name.startswith("quart_upsun.") and record.levelno >= level
    ]


async def test_a_mail_is_sent_after_the_commit(database_url: str, server: MailServer) -> None:
    settings = settings_for(database_url, mail_url=server.url)
    async with application(settings, serving=True) as app, app.app_context():
        async with database_of(app).write() as session:
            async with session.begin_nested():
                await outbox.send_later(session, "greeting", name="ada")
            await outbox.send_later(session, "greeting", name="grace")
            await deliver(app)
            assert server.connections == 0
        messages = await server.wait_for_messages(2)
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


async def test_a_rolled_back_mail_is_not_sent(app: Quart, server: MailServer) -> None:
    with suppress(ZeroDivisionError):
        async with app.app_context(), database_of(app).write() as session:
            await outbox.send_later(session, "greeting", name="ada")
            raise ZeroDivisionError
    await enqueue_mail(app, gone=True)
    assert len(await rows(app)) == 1  # only the second one, which is then skipped
    await deliver(app)
    assert server.connections == 0
    assert await rows(app) == []


async def test_sending_holds_no_database_connection(app: Quart, server: MailServer) -> None:
    held: list[int] = []
    engine = database_of(app).engine
    server.on_data = lambda: held.append(cast(Any, engine.pool).checkedout())
    await enqueue_mail(app)
    await deliver(app)
    assert held == [0]


@pytest.mark.parametrize("failure", ["450 Later, <ada@example.com>", "no server"])
async def test_a_temporary_failure_is_retried(
    app: Quart, server: MailServer, failure: str, caplog: pytest.LogCaptureFixture
) -> None:
    await enqueue_mail(app)
    url = delivery_of(app).transport
    if failure == "no server":
        async with mail_server() as stopped:
            delivery_of(app).transport = transports.SmtpTransport("127.0.0.1", stopped.port)
    else:
        server.answers["RCPT"] = failure
    await deliver(app)
    queued = await row(app)
    assert (queued.status, queued.attempts, queued.is_due) == ("queued", 1, False)
    assert queued.error
    assert failure[:3] in queued.error or failure == "no server"
    (line,) = logged(caplog, logging.WARNING)
    assert "job attempt failed" in line
    assert "'kind': 'greeting'" in line
    assert not any(ADA in line or "t0ken" in line for line in logged(caplog))

    server.answers.clear()
    delivery_of(app).transport = url
    await deliver(app)
    assert server.messages == []
    await make_due(app)
    await deliver(app)
    assert len(server.messages) == 1
    assert await rows(app) == []


async def test_a_mail_fails_permanently_after_about_a_day(
    app: Quart, server: MailServer, caplog: pytest.LogCaptureFixture
) -> None:
    assert 20 < sum(delivering.SEND_MAIL.backoff_seconds) / 3600 < 28
    server.answers["DATA"] = "451 Later"
    await enqueue_mail(app)
    for attempt in range(len(delivering.SEND_MAIL.backoff_seconds) + 1):
        assert (await row(app)).attempts == attempt
        await make_due(app)
        await deliver(app)
    exhausted = await row(app)
    assert exhausted.status == "failed"
    assert exhausted.error == "451 Later"
    assert len(logged(caplog, logging.ERROR)) == 1


@pytest.mark.parametrize("command", ["MAIL", "RCPT", "DATA"])
async def test_a_rejected_mail_fails_permanently_and_is_kept(
    app: Quart, server: MailServer, command: str, caplog: pytest.LogCaptureFixture
) -> None:
    server.answers[command] = f"550 Unknown recipient {ADA}"
    await enqueue_mail(app)
    await deliver(app)
    refused = await row(app)
    assert refused.status == "failed"
    assert refused.error == f"550 Unknown recipient {ADA}"
    (line,) = logged(caplog, logging.ERROR)
    assert f"'job_id': {refused.id}" in line
    assert "'kind': 'greeting'" in line
    assert ADA not in caplog.text

    server.answers.clear()
    await enqueue_mail(app, name="grace")
    await deliver(app)
    async with database_of(app).write() as session:
        assert await failed.retry_job(session, refused.id) == "mail"
    await deliver(app)
    assert [str(message["Subject"]) for message in server.messages] == ["Hello grace", "Hello ada"]
    assert await rows(app) == []


async def test_an_error_that_is_not_utf_8_is_recorded(app: Quart, server: MailServer) -> None:
    server.answers["RCPT"] = cast(Any, b"550 refus\xe9")
    await enqueue_mail(app)
    await deliver(app)
    refused = await row(app)
    assert refused.status == "failed"
    assert refused.error == "550 refus?"


async def test_a_mail_is_not_sent_twice_concurrently(
    app: Quart, database_url: str, server: MailServer
) -> None:
    server.hold.clear()
    await enqueue_mail(app)
    sending = asyncio.create_task(deliver(app))
    await server.wait_until_holding()
    async with application(settings_for(database_url, mail_url=server.url)) as other:
        await deliver(other)
    async with database_of(app).write() as session:
        assert await failed.retry_job(session, (await row(app)).id) is None
    server.hold.set()
    await sending
    assert server.connections == 1
    assert await rows(app) == []


async def test_a_mail_of_a_killed_process_is_sent(app: Quart, server: MailServer) -> None:
    await enqueue_mail(app)
    async with database_of(app).write() as session:
        minute_ago = text("now() - interval '1 min'")
        claimed = {"status": "picked", "queue_manager_id": str(uuid4()), "heartbeat": minute_ago}
        await session.execute(update(Job).values(execute_after=minute_ago, **claimed))
    await deliver(app)
    assert len(server.messages) == 1
    assert await rows(app) == []


async def test_a_sent_mail_is_not_resent_when_the_database_fails(
    app: Quart,
    server: MailServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def complete(self: JobContext) -> NoReturn:
        raise DatabaseUnavailableError

    monkeypatch.setattr(JobContext, "complete", complete)
    await enqueue_mail(app)
    await deliver(app)
    assert len(server.messages) == 1
    assert await rows(app) == []
    assert "mail sent but not recorded" in logged(caplog, logging.WARNING)[0]


async def test_each_attempt_has_the_same_message_id(app: Quart) -> None:
    await enqueue_mail(app)
    await enqueue_mail(app)
    ids = []
    async with app.app_context():
        for number, job in enumerate([*await rows(app)] * 2):
            attempt = JobContext(job.id, job.data, number, database_of(app))
            message = await delivery_of(app).message(attempt)
            assert message is not None
            ids.append(message["Message-ID"])
    assert ids[:2] == ids[2:]
    assert len(set(ids)) == 2


async def test_several_processes_send_each_mail_once_within_the_limit(
    app: Quart, database_url: str, server: MailServer
) -> None:
    """Together they use no more connections than one process may."""
    server.delay = 0.02
    for number in range(20):
        await enqueue_mail(app, name=f"n{number}")
    async with application(settings_for(database_url, mail_url=server.url)) as other:
        await asyncio.gather(deliver(app), deliver(other))
    subjects = [str(message["Subject"]) for message in server.messages]
    assert sorted(subjects) == sorted(f"Hello n{number}" for number in range(20))
    assert 1 < server.max_pending <= delivering.MAX_CONNECTIONS
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
        await enqueue_mail(app)
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


async def test_a_worker_that_has_lost_a_mail_does_not_keep_it(database_url: str) -> None:
    async with application(settings_for(database_url)) as app:

        class LosesJob(transports.KeepTransport):
            async def send(self, mail: transports.OutgoingMail) -> bool:
                async with database_of(app).write() as session:
                    await session.execute(update(Job).values(queue_manager_id=None))
                return await super().send(mail)

        delivery_of(app).transport = LosesJob()
        await enqueue_mail(app)
        await deliver(app)
        assert await mails(app) == []
        assert len(await rows(app)) == 1


async def test_production_without_a_mail_server_fails_mails_permanently(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with application(settings_for(database_url, platform=on_upsun("production"))) as app:
        await enqueue_mail(app)
        await enqueue_mail(app)
        await deliver(app)
        assert [mail.status for mail in await rows(app)] == ["failed", "failed"]
        assert all("Mail is disabled" in mail.error for mail in await rows(app))
        assert await mails(app) == []
    lines = logged(caplog, logging.WARNING)
    assert len(lines) == 2
    assert all("mail disabled" in line for line in lines)
    assert not any("t0ken" in line or ADA in line for line in logged(caplog))


async def test_a_mail_without_a_public_origin_is_retried(
    database_url: str, server: MailServer
) -> None:
    settings = settings_for(
        database_url,
        public_origin="",
        mail_url=server.url,
        platform=on_upsun("production", origin=None),
    )
    async with application(settings) as app:
        await enqueue_mail(app)
        await deliver(app)
        queued = await row(app)
    assert queued.status == "queued"
    assert "PUBLIC_ORIGIN" in queued.error


async def test_links_ignore_the_host_of_the_request(app: Quart, server: MailServer) -> None:
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


async def test_user_input_cannot_inject_headers(app: Quart, server: MailServer) -> None:
    await enqueue_mail(app, name="x\nBcc: evil@example.com")
    await enqueue_mail(app, name="x\r\nBcc: evil@example.com")
    await enqueue_mail(app, to=f"{ADA}, evil@example.com")
    await enqueue_mail(app, to=f"{ADA}\nBcc: evil@example.com")
    await enqueue_mail(app, to="")
    await enqueue_mail(app, name="x\x0b\x85\u2028Bcc: evil@example.com")
    await enqueue_mail(app, name="x\n\nhttps://evil.example/login\n\ny")
    await deliver(app)
    assert len(await rows(app)) == 5
    # They are sent concurrently, so they arrive in any order.
    by_subject = {str(message["Subject"]): message for message in server.messages}
    assert set(by_subject) == {"Hello xBcc: evil@example.com", "Hello x"}
    assert server.recipients == [ADA, ADA]
    assert all(message["Bcc"] is None for message in server.messages)
    html = by_subject["Hello x"].get_body(preferencelist=("html",))
    assert html is not None
    links = BeautifulSoup(html.get_content(), "html.parser").select("a")
    assert [a["href"] for a in links] == [f"{ORIGIN}/about/?token=t0ken"]


async def test_a_mail_that_fails_to_render_does_not_block_others(
    app: Quart, server: MailServer, caplog: pytest.LogCaptureFixture
) -> None:
    for kind in ("unknown", "broken template", "broken composer", "greeting"):
        await enqueue_mail(app, kind)
    await deliver(app)
    assert len(server.messages) == 1
    queued = await rows(app)
    kinds = [mail.data["kind"] for mail in queued]
    assert kinds == ["unknown", "broken template", "broken composer"]
    assert all(mail.status == "queued" and mail.error for mail in queued)
    lines = logged(caplog, logging.WARNING)
    assert len(lines) == 3
    assert not any(ADA in line for line in lines)
    assert any("test_mail.py:" in line for line in lines)


async def test_the_console_transport_saves_the_newest_mails(
    database_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(transports, "MAX_SAVED_MAILS", 3)
    directory = tmp_path / "mail"
    async with application(settings_for(database_url)) as app:
        # Without debug mode the site may be public.
        assert (await app.test_client().get("/dev/mail/")).status_code == 404
    monkeypatch.setattr(transports, "MAIL_DIRECTORY", directory)
    async with application(settings_for(database_url, flask_debug=True)) as app:
        client = app.test_client()
        for name in ("one", "two", "three", "<script>alert(1)</script>"):
            await enqueue_mail(app, name=name)
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
def test_split_links(line: str, links: list[str]) -> None:
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
def test_a_remote_login_requires_tls(url: str, expected: tuple[int, bool, bool | None]) -> None:
    for platform in (None, on_upsun("production", smtp_host="smtp.internal")):
        smtp = transports.choose_transport(
            settings_for("postgresql://x/y", mail_url=url, platform=platform)
        )
        assert isinstance(smtp, transports.SmtpTransport)
        assert (smtp.port, smtp.implicit_tls, smtp.start_tls) == expected


def test_default_transports() -> None:
    def choose(**values: Any) -> transports.Transport:
        return transports.choose_transport(settings_for("postgresql://x/y", **values))

    laptop = choose(flask_debug=True)
    assert isinstance(laptop, transports.ConsoleTransport)
    assert laptop.directory is not None
    without_debug = choose()
    assert isinstance(without_debug, transports.ConsoleTransport)
    assert without_debug.directory is None
    relay = choose(platform=on_upsun("production", smtp_host="smtp.internal"))
    assert isinstance(relay, transports.SmtpTransport)
    assert (relay.host, relay.port, relay.start_tls) == ("smtp.internal", 25, False)
    console = choose(platform=on_upsun("production"), mail_url="console:", flask_debug=True)
    assert isinstance(console, transports.ConsoleTransport)
    assert console.directory is None


@pytest.mark.parametrize("scheme", ["smtp", "smtps"])
async def test_tls_verifies_the_certificate_before_login(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    certificate, context = await server_context(tmp_path, "localhost")
    options = {"start_tls" if scheme == "smtp" else "tls": context}
    async with mail_server(**options) as server:
        settings = settings_for(
            database_url, mail_url=f"{scheme}://us%40er:p%2Fss%3A@localhost:{server.port}"
        )
        async with application(settings) as app:
            await enqueue_mail(app)
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


async def test_the_smtp_password_is_not_logged(
    database_url: str, server: MailServer, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"smtp://user:hunter2@127.0.0.1:{server.port}"  # offers no AUTH without TLS
    async with application(settings_for(database_url, mail_url=url)) as app:
        await enqueue_mail(app)
        await deliver(app)
        queued = await row(app)
    assert queued.status == "queued"
    assert "AUTH" in queued.error
    assert server.messages == []
    assert "AUTH" in logged(caplog, logging.WARNING)[0]
    assert "hunter2" not in caplog.text + queued.error + repr(vars(app))


async def test_shutdown_finishes_a_mail_and_starts_no_more(
    database_url: str, server: MailServer
) -> None:
    server.hold.clear()
    settings = settings_for(database_url, mail_url=server.url)
    async with application(settings, serving=True) as app:
        await enqueue_mail(app)
        await server.wait_until_holding()
        app.extensions["quart_upsun"].draining.set()
        await asyncio.sleep(0)  # until the runner is stopping
        await enqueue_mail(app, name="grace")
        server.hold.set()
    assert [str(message["Subject"]) for message in server.messages] == ["Hello ada"]
    async with application(settings) as app:
        assert [mail.data["data"]["name"] for mail in await rows(app)] == ["grace"]


async def test_shutdown_requeues_a_mail_that_takes_too_long(
    database_url: str, server: MailServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mail that it was sending is requeued without counting an attempt."""
    monkeypatch.setattr(running, "SHUTDOWN_SECONDS", 0.05)
    server.hold.clear()
    settings = settings_for(database_url, mail_url=server.url)
    async with application(settings, serving=True) as app:
        await enqueue_mail(app)
        await server.wait_until_holding()
    async with application(settings) as app:
        requeued = await row(app)
        assert (requeued.status, requeued.attempts, requeued.is_due) == ("queued", 0, True)


async def test_mails_wait_for_a_free_smtp_connection(database_url: str, server: MailServer) -> None:
    server.hold.clear()
    count = 2 * delivering.MAX_CONNECTIONS + 1
    async with application(settings_for(database_url, mail_url=server.url), serving=True) as app:
        for _ in range(count):
            await enqueue_mail(app)
        await server.wait_until(lambda: server.at_once == delivering.MAX_CONNECTIONS)
        server.hold.set()
        await server.wait_for_messages(count)
    assert server.max_pending == delivering.MAX_CONNECTIONS
