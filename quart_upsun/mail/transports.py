"""Where a mail goes: to a mail server, onto a laptop's console, or nowhere."""

import asyncio
import re
import ssl
import sys
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.message import EmailMessage
from ipaddress import ip_address
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

import aiosmtplib

from quart_upsun.files import write_atomically
from quart_upsun.jobs.queue import JobError, PermanentJobError
from quart_upsun.logging import get_logger
from quart_upsun.mail import rendering
from quart_upsun.settings import Settings

log = get_logger(__name__)

STEP_TIMEOUT_SECONDS = 10.0  # seconds that a mail server has for each step
SEND_TIMEOUT_SECONDS = 60.0  # and for all of them

MAIL_DIRECTORY = Path(".data", "mail")  # below the root: where a laptop keeps the mails it shows
MAX_SAVED_MAILS = 200  # files
FILE_NAME = re.compile(r"\d{8}T\d{12}Z-\d+\.eml")
FILE_TIME = "%Y%m%dT%H%M%S%fZ"

# "Authentication required" comes in answer to a sender, but has nothing to do with this mail.
AUTHENTICATION_REQUIRED = 530


@dataclass(frozen=True)
class OutgoingMail:
    """A rendered mail with its kind and the number of its job."""

    id: int
    kind: str
    message: EmailMessage


class Transport(Protocol):
    """A way for mail to leave."""

    async def send(self, mail: OutgoingMail) -> bool:
        """Send a mail; False if it did not leave, and is to be kept.

        Raises:
            JobError: it may be tried again.
            Refused: it need not be.
        """
        ...


def choose_transport(settings: Settings) -> Transport:
    """Return the way that mail takes in this environment."""
    platform = settings.platform
    if platform is not None and platform.type != "production":
        # Its data are a copy of production's: mail would reach people who have no account here.
        return KeepTransport()
    url = urlsplit(settings.mail_url.get_secret_value())
    if url.scheme in {"smtp", "smtps"}:
        return SmtpTransport(
            url.hostname or "",
            url.port,
            username=unquote(url.username) if url.username else None,
            password=unquote(url.password or ""),
            tls=True if url.scheme == "smtps" else None,
            name=_host(settings),
        )
    if platform is None or url.scheme == "console":
        # The files can be read by everybody who reaches the site.
        return ConsoleTransport(
            settings.root / MAIL_DIRECTORY if settings.traceback_pages else None
        )
    if platform.smtp_host:
        # Inside the platform's network, and by no name that a certificate could hold.
        return SmtpTransport(platform.smtp_host, 25, tls=False, name=_host(settings))
    return DisabledTransport()


class KeepTransport:
    """Sends nothing: the mail is kept, and the log tells it to who tries a preview."""

    async def send(self, mail: OutgoingMail) -> bool:
        written = rendering.parse_message(mail.message)
        log.info(
            "mail kept", job_id=mail.id, kind=mail.kind, subject=written.subject, text=written.text
        )
        return False


class DisabledTransport:
    """Sends nothing, and keeps nothing of what the mail says: its links open real accounts."""

    async def send(self, mail: OutgoingMail) -> bool:
        raise PermanentJobError(
            "Mail is off in this environment, and MAIL_URL is not set.", "mail is off"
        )


class ConsoleTransport:
    """Shows the mail to the developer, and keeps the newest ones as files."""

    def __init__(self, directory: Path | None) -> None:
        self.directory = directory

    async def send(self, mail: OutgoingMail) -> bool:
        name = None
        if self.directory is not None:
            try:
                name = await asyncio.to_thread(_save_mail, self.directory, mail)
            except OSError as error:
                raise JobError(f"{self.directory}: {error.strerror}", "file") from error
        written = rendering.parse_message(mail.message)
        if sys.stdout.isatty():
            sys.stdout.write(_format_mail(written))
            sys.stdout.flush()
        else:  # the lines around it are JSON
            log.info(
                "mail printed",
                job_id=mail.id,
                kind=mail.kind,
                file=name,
                to=written.headers["To"],
                subject=written.subject,
                text=written.text,
            )
        return True


class SmtpTransport:
    """Hands the mail to a mail server.

    Args:
        host: of the server.
        port: by default 465 with TLS from the start, 587 with a login, else 25.
        username: for the login; None for a server that asks for none.
        password: to go with it.
        tls: True from the start, False never, None where the server offers to begin it. A login
            that leaves this machine insists on it. Certificates are checked.
        name: what this machine calls itself.
    """

    def __init__(
        self,
        host: str,
        port: int | None = None,
        *,
        username: str | None = None,
        password: str = "",
        tls: bool | None = None,
        name: str = "",
    ) -> None:
        self.host = host
        self.port = port or (465 if tls else 587 if username is not None else 25)
        self.from_the_start = tls is True
        self.start_tls = False if tls is not None else None
        if tls is None and username is not None and not _is_loopback(host):
            self.start_tls = True
        self._username = username
        self._password = password
        self._name = name or "localhost"
        self._tls_context: ssl.SSLContext | None = None

    async def send(self, mail: OutgoingMail) -> bool:
        if self._tls_context is None:
            # Reads all certificates of the system: 20 ms and more.
            self._tls_context = await asyncio.to_thread(ssl.create_default_context)
        server = aiosmtplib.SMTP(
            hostname=self.host,
            port=self.port,
            username=self._username,
            password=self._password if self._username is not None else None,
            local_hostname=self._name,
            timeout=STEP_TIMEOUT_SECONDS,
            use_tls=self.from_the_start,
            start_tls=self.start_tls,
            tls_context=self._tls_context,
        )
        try:
            async with asyncio.timeout(SEND_TIMEOUT_SECONDS):
                await server.connect()
                await server.send_message(mail.message)
            # It is sent: what the server says to this, if anything, is no matter.
            with suppress(aiosmtplib.SMTPException, OSError):
                await server.quit(timeout=1.0)
        except (aiosmtplib.SMTPException, OSError, TimeoutError, ValueError) as error:
            raise _job_error(error) from error
        finally:
            server.close()
        return True


def saved_mails(directory: Path) -> list[Path]:
    """Return the mails that the console keeps, the newest first."""
    if not directory.is_dir():
        return []
    return sorted(
        (path for path in directory.iterdir() if FILE_NAME.fullmatch(path.name)), reverse=True
    )


def _save_mail(directory: Path, mail: OutgoingMail) -> str:
    """Write a mail as a file, and remove the oldest ones; return its name."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{datetime.now(UTC).strftime(FILE_TIME)}-{mail.id}.eml"
    write_atomically(path, mail.message.as_bytes())
    for old in saved_mails(directory)[MAX_SAVED_MAILS:]:
        old.unlink(missing_ok=True)
    return path.name


def _format_mail(written: rendering.ReadableMail) -> str:
    line = "─" * 72
    head = "\n".join(f"{name}: {written.headers[name]}" for name in ("To", "Subject"))
    return f"{line}\n{head}\n\n{written.text}\n{line}\n"


def _job_error(error: Exception) -> JobError:
    """Say what a mail server's answer means for this mail."""
    if isinstance(error, aiosmtplib.SMTPRecipientsRefused):
        # To one recipient, so there is one answer.
        return _job_error(error.recipients[0])
    words = str(error) or type(error).__name__
    if isinstance(error, aiosmtplib.SMTPResponseException):
        words = f"{error.code} {error.message}"
        code = f"{type(error).__name__} {error.code}"
        about_mail = (
            aiosmtplib.SMTPSenderRefused,
            aiosmtplib.SMTPRecipientRefused,
            aiosmtplib.SMTPDataError,
        )
        if (
            isinstance(error, about_mail)
            and error.code >= 500
            and error.code != AUTHENTICATION_REQUIRED
        ):
            return PermanentJobError(words, code)
        return JobError(words, code)
    if isinstance(error, aiosmtplib.SMTPNotSupported):
        return PermanentJobError(
            words, type(error).__name__
        )  # it cannot send to an address like this one
    if isinstance(error, ValueError):
        return JobError(words, type(error).__name__)  # the words may repeat an address
    return JobError(words, words)


def _host(settings: Settings) -> str:
    return urlsplit(settings.origin).hostname or ""


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
