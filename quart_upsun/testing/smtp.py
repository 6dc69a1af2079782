"""An SMTP server for tests, in the test's event loop, that records all messages."""

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

WAIT_SECONDS = 20.0

# aiosmtpd logs every line of the protocol, which would flood the output of failing tests.
logging.getLogger("mail.log").setLevel(logging.ERROR)


class MailServer:
    """The state of a test mail server: received messages, and the replies to send.

    Attributes:
        messages: the accepted messages, in order of arrival.
        recipients: the envelope recipients of all accepted messages.
        answers: replies by command (`MAIL`, `RCPT`, `DATA`) instead of "250 OK", for example
            `450 Later`.
        connections: the number of connections so far.
        logins: the username and password of each login.
        encrypted: for each message, whether it was sent over TLS.
        hold: an event. Clear it to delay the replies to `DATA` until it is set again.
        delay: seconds to wait before the reply to each `DATA`.
        on_data: called for each message before it is accepted.
        at_once: the number of messages that wait for a reply now.
        max_pending: the maximum of `at_once` so far.
        port: the port of the server.
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
        self.max_pending = 0
        self.port = 0
        self._changed = asyncio.Condition()
        self._server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        """The `MAIL_URL` of this server."""
        return f"smtp://127.0.0.1:{self.port}"

    async def wait_for_messages(self, count: int = 1) -> list[EmailMessage]:
        """Wait until `count` messages have been accepted, and return all messages."""
        await self.wait_until(lambda: len(self.messages) >= count)
        return self.messages

    async def wait_for_mail(self, to: str, subject: str) -> EmailMessage:
        """Wait for a message by recipient and subject, and return the newest."""

        def found() -> list[EmailMessage]:
            return [
                each for each in self.messages if (each["To"], each["Subject"]) == (to, subject)
            ]

        await self.wait_until(lambda: bool(found()))
        return found()[-1]

    async def wait_until_holding(self) -> None:
        """Wait until a message waits for its reply."""
        await self.wait_until(lambda: self.at_once > 0)

    async def wait_until(self, happened: Callable[[], bool]) -> None:
        """Wait until a condition is true. It is checked whenever the server's state changes."""
        async with asyncio.timeout(WAIT_SECONDS), self._changed:
            await self._changed.wait_for(happened)

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    def stop(self) -> None:
        """Stop accepting connections."""
        if self._server is not None:
            self._server.close()

    # Hooks of aiosmtpd.

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
        self.max_pending = max(self.max_pending, self.at_once)
        await self._notify()
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
        await self._notify()
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
    """Run a mail server on a free port.

    Args:
        start_tls: offer STARTTLS with this TLS context, and login after it.
        tls: use TLS from the start (implicit TLS) with this context, and offer login.
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
