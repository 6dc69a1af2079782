"""Mail transports: SMTP, the console of a laptop, or none."""

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

STEP_TIMEOUT_SECONDS = 10.0  # for each SMTP command
SEND_TIMEOUT_SECONDS = 60.0  # for all of them

MAIL_DIRECTORY = Path(".data", "mail")  # below the root, on laptops
MAX_SAVED_MAILS = 200
FILE_NAME = re.compile(r"\d{8}T\d{12}Z-\d+\.eml")
FILE_TIME = "%Y%m%dT%H%M%S%fZ"

# "Authentication required" is a response to MAIL FROM, but is not about this mail.
AUTHENTICATION_REQUIRED = 530


@dataclass(frozen=True)
class OutgoingMail:
    """A rendered mail with its kind and the id of its job."""

    id: int
    kind: str
    message: EmailMessage


class Transport(Protocol):
    """A way to send mail."""

    async def send(self, mail: OutgoingMail) -> bool:
        """Send a mail; return False if it was not sent and must be kept.

        Raises:
            JobError: sending failed and can be retried.
            PermanentJobError: sending failed and a retry would fail too.
        """
        ...


def choose_transport(settings: Settings) -> Transport:
    """Return the mail transport of this environment."""
    platform = settings.platform
    if platform is not None and platform.type != "production":
        # The data may be a copy of production's, so mail would reach people without an account
        # here.
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
        # Every visitor of the site can read the files, so they are saved only in debug mode.
        return ConsoleTransport(
            settings.root / MAIL_DIRECTORY if settings.traceback_pages else None
        )
    if platform.smtp_host:
        # In the platform's network, under a name that no certificate has.
        return SmtpTransport(platform.smtp_host, 25, tls=False, name=_host(settings))
    return DisabledTransport()


class KeepTransport:
    """Sends no mail: it is kept in the database and logged, for testers of a preview."""

    async def send(self, mail: OutgoingMail) -> bool:
        written = rendering.parse_message(mail.message)
        log.info(
            "mail kept", job_id=mail.id, kind=mail.kind, subject=written.subject, text=written.text
        )
        return False


class DisabledTransport:
    """Sends and keeps no mail, because its links give access to real accounts."""

    async def send(self, mail: OutgoingMail) -> bool:
        raise PermanentJobError(
            "Mail is disabled in this environment, and MAIL_URL is not set.", "mail disabled"
        )


class ConsoleTransport:
    """Prints mail on the console, and saves the newest mails as files."""

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
        else:  # a log line in JSON, like the lines around it
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
    """Sends mail with SMTP.

    Args:
        host: the mail server.
        port: by default 465 with implicit TLS, 587 with a login, else 25.
        username: the user to log in as; None for no login.
        password: the password of the user.
        tls: True for implicit TLS, False for none, None for STARTTLS if the server offers it. A
            login on another machine requires TLS. Certificates are verified.
        name: the host name for EHLO.
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
        self.implicit_tls = tls is True
        self.start_tls = False if tls is not None else None
        if tls is None and username is not None and not _is_loopback(host):
            self.start_tls = True
        self._username = username
        self._password = password
        self._name = name or "localhost"
        self._tls_context: ssl.SSLContext | None = None

    async def send(self, mail: OutgoingMail) -> bool:
        if self._tls_context is None:
            # Loading the system's certificates takes 20 ms or more.
            self._tls_context = await asyncio.to_thread(ssl.create_default_context)
        server = aiosmtplib.SMTP(
            hostname=self.host,
            port=self.port,
            username=self._username,
            password=self._password if self._username is not None else None,
            local_hostname=self._name,
            timeout=STEP_TIMEOUT_SECONDS,
            use_tls=self.implicit_tls,
            start_tls=self.start_tls,
            tls_context=self._tls_context,
        )
        try:
            async with asyncio.timeout(SEND_TIMEOUT_SECONDS):
                await server.connect()
                await server.send_message(mail.message)
            # The mail is sent, so errors of QUIT are ignored.
            with suppress(aiosmtplib.SMTPException, OSError):
                await server.quit(timeout=1.0)
        except (aiosmtplib.SMTPException, OSError, TimeoutError, ValueError) as error:
            raise _job_error(error) from error
        finally:
            server.close()
        return True


def saved_mails(directory: Path) -> list[Path]:
    """Return the files of the saved mails, newest first."""
    if not directory.is_dir():
        return []
    return sorted(
        (path for path in directory.iterdir() if FILE_NAME.fullmatch(path.name)), reverse=True
    )


def _save_mail(directory: Path, mail: OutgoingMail) -> str:
    """Save a mail as a file, and delete the oldest files; return its name."""
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
    """Return the `JobError` for an SMTP error: permanent, or one to retry."""
    if isinstance(error, aiosmtplib.SMTPRecipientsRefused):
        # There is one recipient, so there is one response.
        return _job_error(error.recipients[0])
    message = str(error) or type(error).__name__
    if isinstance(error, aiosmtplib.SMTPResponseException):
        message = f"{error.code} {error.message}"
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
            return PermanentJobError(message, code)
        return JobError(message, code)
    if isinstance(error, aiosmtplib.SMTPNotSupported):
        # The server cannot send to this address, for instance because it is not ASCII.
        return PermanentJobError(message, type(error).__name__)
    if isinstance(error, ValueError):
        return JobError(message, type(error).__name__)  # the message may contain an address
    return JobError(message, message)


def _host(settings: Settings) -> str:
    return urlsplit(settings.origin).hostname or ""


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
