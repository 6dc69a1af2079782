"""Puts a mail together and hands it to a transport: a job, which `outbox.send_later` asks for.

At least once: a process that ends after the mail server has taken a mail, and before that is
written down, leaves it to be sent again. Both attempts have the same Message-ID.
"""

from dataclasses import dataclass
from email.message import EmailMessage
from typing import Any

from quart import Quart, current_app
from sqlalchemy import insert

from quart_upsun.current import current_toolkit
from quart_upsun.database import DatabaseUnavailableError
from quart_upsun.jobs.queue import JobContext, JobError, Task
from quart_upsun.logging import get_logger
from quart_upsun.mail import development, rendering
from quart_upsun.mail.letters import Composer
from quart_upsun.mail.models import Mail
from quart_upsun.mail.transports import (
    SEND_TIMEOUT_SECONDS,
    ConsoleTransport,
    OutgoingMail,
    Transport,
    choose_transport,
)
from quart_upsun.settings import Settings

log = get_logger(__name__)

MAX_CONNECTIONS = 8  # mail servers count connections


def init_app(app: Quart, settings: Settings) -> "Delivery":
    """Say how mail is sent; on a laptop, add pages that show it."""
    delivery = Delivery(
        transport=choose_transport(settings),
        composers={},
        origin=settings.origin or "",
        sender=settings.mail_from,
    )
    if (
        isinstance(delivery.transport, ConsoleTransport)
        and delivery.transport.directory is not None
    ):
        app.register_blueprint(development.blueprint)
    return delivery


def external_url(endpoint: str, **values: Any) -> str:
    """Return the public address of a page, for a link in a mail.

    Never of the host that a request names: whoever asks for a mail could choose where its link
    leads.

    Raises:
        JobError: nobody has told the public origin.
    """
    path = current_app.url_map.bind("").build(endpoint, values)
    return current_toolkit().mail.known_origin() + path


@dataclass
class Delivery:
    """How this application sends mail."""

    transport: Transport
    composers: dict[str, Composer]
    """What finds out what a mail says, by its kind."""
    origin: str
    """Scheme and host of the site; empty if nobody has told it."""
    sender: str
    """The address that mail comes from; by default noreply@ the host."""

    def known_origin(self) -> str:
        """Return the public origin.

        Raises:
            JobError: nobody has told it.
        """
        if not self.origin:
            raise JobError(
                "The site's address is not known: set PUBLIC_ORIGIN, or give the application"
                " a route.",
                "no origin",
            )
        return self.origin

    async def message(self, running: JobContext) -> EmailMessage | None:
        """Put together what the mail says now; None if there is nothing to say any more."""
        origin, kind = self.known_origin(), running.data["kind"]
        composer = self.composers.get(kind)
        if composer is None:  # a newer one may
            raise JobError(f"This release knows no mail of the kind {kind!r}.", "unknown kind")
        async with running.database.read() as session:
            letter = await composer(session, running.data["data"])
        if letter is None:
            return None
        return await rendering.render(
            current_app,
            letter,
            origin=origin,
            sender=self.sender,
            identity=running.data["identity"],
        )


async def send_mail(running: JobContext) -> None:
    """Send one mail, or keep it where none is sent."""
    delivery = current_toolkit().mail
    about = {"job_id": running.id, "kind": running.data["kind"]}
    message = await delivery.message(running)
    if message is None:
        log.info("mail skipped", **about)
    elif await delivery.transport.send(OutgoingMail(running.id, about["kind"], message)):
        log.info("mail sent", **about, attempt=running.attempt)
        try:
            async with running.complete():
                pass  # at once: until then it is sent again, should this process be killed
        except DatabaseUnavailableError:
            log.warning("mail sent but not recorded", **about)
            # To fail now would send it again. The queue notes the end of what does not fail, as
            # soon as it has the database back.
    else:
        async with running.complete() as session:
            kept = {"kind": about["kind"], "message": message.as_string()}
            await session.execute(insert(Mail).values(kept))


SEND_MAIL = Task(
    "mail",
    send_mail,
    timeout=SEND_TIMEOUT_SECONDS + 30,
    priority=10,  # somebody is waiting for it
    max_concurrent=MAX_CONNECTIONS,
    logged_fields=("kind",),
)
