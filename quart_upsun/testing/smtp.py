"""A mail server for tests: it runs in the test's own event loop and remembers what it was given."""

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

PATIENCE = 5.0  # seconds

# It tells every line that passes, and would fill the output of each test that fails.
logging.getLogger("mail.log").setLevel(logging.ERROR)


class MailServer:
    """What a mail server was sent, and what it is to answer.

    Attributes:
        messages: those it took, in order of arrival.
        answers: to `MAIL`, `RCPT` and `DATA` in place of "250 OK", for instance `450 Later`.
        connections: how many there were.
        logins: user name and password of each.
        encrypted: for each message, whether it came through TLS.
        hold: while it is not set, nothing is answered to what was sent.
        delay: seconds it takes for each message.
        on_data: called for each message before it is taken.
    """

    def __init__(self) -> None:
        self.messages: list[EmailMessage] = []
        self.recipients: list[str] = []
        self.answers: dict[str, str] = {}
        self.connections = 0
        self.logins: list[tuple[str, str]] = []
        self.encrypted: list[bool] = []
        self.hold = asyncio.Event()
        self.hold.set()
        self.on_data: Callable[[], None] = lambda: None
        self.delay = 0.0
        self.at_once = 0
        self.most_at_once = 0
        self.port = 0
        self._news = asyncio.Condition()
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        """What `MAIL_URL` says to send to this server."""
        return f"smtp://127.0.0.1:{self.port}"

    async def arrived(self, count: int = 1) -> list[EmailMessage]:
        """Wait until so many messages have been taken, and return all."""
        await self.until(lambda: len(self.messages) >= count)
        return self.messages

    async def mail(self, to: str, subject: str) -> EmailMessage:
        """Wait for a mail, and return the newest of its kind."""

        def found() -> list[EmailMessage]:
            return [
                each for each in self.messages if (each["To"], each["Subject"]) == (to, subject)
            ]

        await self.until(lambda: bool(found()))
        return found()[-1]

    async def is_holding(self) -> None:
        """Wait until somebody waits for an answer to what was sent."""
        await self.until(lambda: self.at_once > 0)

    async def until(self, happened: Callable[[], bool]) -> None:
        """Wait until something is so that changes with what is sent here."""
        async with asyncio.timeout(PATIENCE), self._news:
            await self._news.wait_for(happened)

    async def _tell(self) -> None:
        async with self._news:
            self._news.notify_all()

    def stop(self) -> None:
        """Refuse connections from now on."""
        if self._server is not None:
            self._server.close()

    # What aiosmtpd calls; the names are its own.

    async def handle_MAIL(  # noqa: N802
        self,
        server: SMTP,
        session: Session,
        envelope: Envelope,
        address: str,
        options: list[str],
    ) -> str:
        if answer := self.answers.get("MAIL"):
            return answer
        envelope.mail_from = address
        envelope.mail_options.extend(options)
        return "250 OK"

    async def handle_RCPT(  # noqa: N802
        self,
        server: SMTP,
        session: Session,
        envelope: Envelope,
        address: str,
        options: list[str],
    ) -> str:
        if answer := self.answers.get("RCPT"):
            return answer
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await self._tell()
        try:
            await self.hold.wait()
            await asyncio.sleep(self.delay)
            self.on_data()
        finally:
            self.at_once -= 1
        if answer := self.answers.get("DATA"):
            return answer
        content = envelope.content
        assert isinstance(content, bytes)
        self.messages.append(
            message_from_bytes(content.replace(b"\r\n", b"\n"), policy=policy.default)
        )
        self.recipients.extend(envelope.rcpt_tos)
        transport = server.transport
        assert transport is not None
        self.encrypted.append(transport.get_extra_info("sslcontext") is not None)
        await self._tell()
        return "250 OK"

    def authenticate(
        self, server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: Any
    ) -> AuthResult:
        assert isinstance(data, LoginPassword)
        self.logins.append((data.login.decode(), data.password.decode()))
        return AuthResult(success=True)


@asynccontextmanager
async def mail_server(
    *, start_tls: ssl.SSLContext | None = None, tls: ssl.SSLContext | None = None
) -> AsyncIterator[MailServer]:
    """Run a mail server on a port of its own.

    Args:
        start_tls: offer to begin TLS with this certificate, and a login then.
        tls: begin with TLS, and offer a login.
    """
    mails = MailServer()
    loop = asyncio.get_running_loop()

    def connected() -> SMTP:
        mails.connections += 1
        return SMTP(
            mails,
            hostname="mail.example",
            loop=loop,
            tls_context=start_tls,
            authenticator=mails.authenticate,
            auth_require_tls=tls is None,
        )

    mails._server = await loop.create_server(connected, "127.0.0.1", 0, ssl=tls)
    mails.port = mails._server.sockets[0].getsockname()[1]
    try:
        yield mails
    finally:
        mails.hold.set()
        mails.stop()
